"""Calibrated, transformed rewards for other trainers: `integrations.trl` and `integrations.tunix`.

Neither library is imported here: a reward is a function, and their settings are read as attributes.
"""

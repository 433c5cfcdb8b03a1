"""Two CPU minutes: a small language model on a synthetic task, aligned for best-of-N and worst-of-N, five methods compared.

The task gives every prompt a tone, and tones scale the reward by factors from 0.15 to 6: raw rewards are badly
calibrated across prompts, as learned reward models are, and that is what calibration repairs.
"""

from configs import base


def get_config():
    return base.get_config()

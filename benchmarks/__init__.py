"""Measured comparisons: `python -m benchmarks --help`. Not part of the package that is installed."""

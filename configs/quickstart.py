"""A small language model on a synthetic task, aligned for best-of-N and worst-of-N, five methods compared.

The task gives every prompt a tone, and tones scale the reward by factors from 0.15 to 6: raw rewards are badly
calibrated across prompts, as learned reward models are, and that is what calibration repairs.
"""

from configs import base


def get_config():
    config = base.get_config()
    with config.unlocked():
        config.data.prompt_tokens = 5  # two topics, a tone, a colon, and what begins them
        config.data.response_tokens = 6  # five words and what ends them
        config.align.at_once = 5  # all methods, which two cores then share evenly
        config.align.microbatches = 4  # the arrays of a quarter of a step fit the caches of a CPU
        config.evaluate.curve = (0.35, 0.7)
    return config

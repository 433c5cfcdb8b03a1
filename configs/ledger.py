"""A second synthetic task, with the quickstart's settings as they are: long responses, discrete and heavy-tailed rewards.

Nothing here was tuned on it: a check that what was found on the first task is not its own work.
"""

from configs import base


def get_config():
    config = base.get_config()
    with config.unlocked():
        config.data.name = "synthetic_ledger"
        config.data.demonstrations_per_prompt = 20
        config.data.preferences_per_prompt = 1  # unused: the reward is the task's own
        config.data.response_tokens = 14
        config.calibrate.prompts_per_call = 128
    return config

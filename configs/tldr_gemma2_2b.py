"""Reddit TL;DR with Gemma 2 2B: summaries aligned for best-of-4, on eight accelerators of 40 GB or more.

Give the folder of the base model with `--config.model.path`, and the official files (`comparisons/batch*.json`,
`tldr_3_filtered/*.jsonl`) with `--config.data.path`.
"""

from configs import hh_helpful_gemma2_2b


def get_config():
    config = hh_helpful_gemma2_2b.get_config()
    with config.unlocked():
        config.data.name = "tldr"
        config.data.path = "data/summarize-from-feedback"
        config.data.prompt_tokens = 640
        config.data.response_tokens = 64
        config.sft.steps = 1200
        config.reward_model.steps = 600
        config.calibrate.prompts_per_call = 64
        config.align.prompts_per_step = 64
        config.evaluate.prompts_per_call = 64
    return config

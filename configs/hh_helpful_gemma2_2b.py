"""HH-RLHF helpfulness with Gemma 2 2B: adapters aligned for best-of-4, on eight accelerators of 40 GB or more.

Give the folder of the base model with `--config.model.path`; HH-RLHF is downloaded, or read from `--config.data.path`.
The reward model and the judge are trained on disjoint halves of the preference pairs, from the same supervised policy.
"""

from configs import base


def get_config():
    config = base.get_config()
    with config.unlocked():
        config.reward = "learned"
        config.judge = "learned"

        config.data.name = "anthropic_hh"
        config.data.subset = "helpful_base"
        config.data.train_prompts = 8192
        config.data.test_prompts = 512
        config.data.prompt_tokens = 512
        config.data.response_tokens = 256
        config.data.long_prompts = "drop"

        config.model.path = "models/gemma-2-2b"
        config.model.dtype = "bfloat16"
        config.model.remat = "layer"
        config.mesh.data = 1
        config.mesh.fsdp = -1

        config.lora.rank = 32
        config.lora.alpha = 32.0

        config.sft.steps = 600
        config.sft.batch_size = 64
        config.sft.learning_rate = 1e-5
        config.reward_model.steps = 300
        config.reward_model.batch_size = 64
        config.reward_model.learning_rate = 1e-5

        config.sampling.truncated = "lowest"  # an answer that does not end is worth less than any that does

        config.calibrate.rollouts = 64
        config.calibrate.held_out = 8
        config.calibrate.prompts_per_call = 32

        config.align.methods = ("identity", "exponential(10)")
        config.align.steps = 400
        config.align.prompts_per_step = 32
        config.align.rollouts = 8
        config.align.learning_rate = 1e-4
        config.align.clip_norm = 1.0
        config.align.target_kl = 2.0  # a table of K rollouts can steer to at most about log(K) nats

        config.evaluate.samples = 32
        config.evaluate.prompts_per_call = 32
        config.evaluate.headline = "best_of(4)"
    return config

"""Real text on a laptop: HH-RLHF harmlessness, a model of about a million parameters, aligned for worst-of-4.

The reward model and the judge are trained on disjoint halves of the preference pairs. Expect about half an hour, and no
miracle: a model this small writes poor English, and its reward model mostly likes some lengths better than others. What
the run shows is the whole chain on real dialogues. Give the folder of the official files with `--config.data.path`.
"""

from configs import base


def get_config():
    config = base.get_config()
    with config.unlocked():
        config.reward = "learned"
        config.judge = "learned"

        config.data.name = "anthropic_hh"
        config.data.subset = "harmless_base"
        config.data.train_prompts = 320
        config.data.test_prompts = 192
        config.data.prompt_tokens = 48
        config.data.response_tokens = 32
        config.data.long_prompts = "truncate_left"

        config.tokenizer.kind = "bpe"
        config.tokenizer.vocab_size = 4096

        config.model.num_layers = 3
        config.model.embed_dim = 128
        config.model.head_dim = 32
        config.model.mlp_dim = 384

        config.sft.steps = 400
        config.sft.batch_size = 48
        config.reward_model.steps = 66
        config.reward_model.batch_size = 32
        config.reward_model.learning_rate = 1e-3

        config.calibrate.rollouts = 32
        config.calibrate.prompts_per_call = 32

        config.align.methods = ("raw", "identity", "exponential(-5)")
        config.align.steps = 90
        config.align.prompts_per_step = 16
        config.align.learning_rate = 1.5e-4
        config.align.kl_rate = 0.0  # so few steps: a controller overshoots, the closed-form beta does not
        config.align.save_every = 30

        config.evaluate.samples = 32
        config.evaluate.prompts_per_call = 32
        config.evaluate.headline = "worst_of(4)"
    return config

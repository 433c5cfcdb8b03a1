"""The quickstart shrunk until every stage takes seconds; a config file for `infalign --config tests/tiny.py`."""

from configs import base


def get_config():
    config = base.get_config()
    with config.unlocked():
        config.data.test_prompts = 12
        config.data.demonstrations_per_prompt = 4
        config.data.preferences_per_prompt = 2
        config.model.num_layers = 1
        config.model.embed_dim = 16
        config.model.num_heads = 2
        config.model.num_kv_heads = 1
        config.model.head_dim = 8
        config.model.mlp_dim = 32
        config.sft.steps = 30
        config.sft.batch_size = 64
        config.sft.learning_rate = 1e-2
        config.reward_model.steps = 8
        config.calibrate.rollouts = 16
        config.align.methods = ("raw", "exponential(10)")
        config.align.steps = 12
        config.align.prompts_per_step = 16
        config.align.rollouts = 4
        config.align.target_kl = 0.05
        config.align.save_every = 3
        config.evaluate.samples = 16
        config.evaluate.prompts_per_call = 12
        config.evaluate.curve = (0.5,)
        config.evaluate.show = 1
    return config

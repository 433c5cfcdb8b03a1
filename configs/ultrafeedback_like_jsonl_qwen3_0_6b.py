"""Your own preference pairs with a chat model, Qwen 3 0.6B: adapters aligned for best-of-8, on one accelerator of 24 GB.

`--config.data.path` is a `.jsonl` (or a folder of `train.jsonl`, `test.jsonl`) whose rows have `chosen` and `rejected`
dialogues, lists of {role, content}, as UltraFeedback's binarised pairs do; the model's own chat template writes them as
text. `--config.model.path` is the folder of the chat model, taken as the reference policy as it is. To score with a
published reward model rather than one trained on the pairs: `--config.reward=hf:FOLDER`.
"""

from configs import base


def get_config():
    config = base.get_config()
    with config.unlocked():
        config.reward = "learned"
        config.judge = "learned"

        config.model.path = "models/Qwen3-0.6B"
        config.model.dtype = "bfloat16"
        config.model.remat = "layer"
        config.lora.rank = 16
        config.lora.alpha = 32.0

        config.data.name = "jsonl"
        config.data.path = "data/preferences"
        config.data.chat_template = config.model.get_ref("path")  # follows --config.model.path
        config.data.train_prompts = 4096
        config.data.test_prompts = 256
        config.data.prompt_tokens = 512
        config.data.response_tokens = 512
        config.data.long_prompts = "drop"

        config.sft.steps = 0
        config.reward_model.steps = 500
        config.reward_model.batch_size = 16
        config.reward_model.learning_rate = 1e-5

        config.sampling.truncated = "lowest"

        config.calibrate.rollouts = 32
        config.calibrate.held_out = 8
        config.calibrate.prompts_per_call = 16

        config.align.methods = ("identity", "exponential(10)")
        config.align.steps = 300
        config.align.prompts_per_step = 8
        config.align.rollouts = 8
        config.align.learning_rate = 1e-4
        config.align.clip_norm = 1.0
        config.align.target_kl = 2.0  # a table of K rollouts can steer to at most about log(K) nats

        config.evaluate.samples = 16
        config.evaluate.prompts_per_call = 16
        config.evaluate.headline = "best_of(8)"
    return config

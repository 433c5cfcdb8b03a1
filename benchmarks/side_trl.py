"""TRL: generation as its RLOOTrainer does it, and the trainer's own step, on a Llama of transformers of the same size.

Its settings are the fastest that do the same work: float32, no gradient checkpointing (TRL's default is on), one batch,
one iteration, no top-k, all cores. `update` leaves out the pass for the old log-probs that RLOO makes in a real step.
"""

import pathlib
import tempfile
import threading
from importlib.metadata import version

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks import shapes


def versions():
    return {name: version(name) for name in ("trl", "torch", "transformers", "numpy")}


def tokenizer():
    words = {"<pad>": shapes.PAD, "<eos>": shapes.EOS, **{str(i): i for i in range(2, shapes.MODEL["vocab"])}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def save_model(folder):
    m = shapes.MODEL
    config = transformers.LlamaConfig(
        vocab_size=m["vocab"], hidden_size=m["embed"], intermediate_size=m["mlp"], num_hidden_layers=m["layers"],
        num_attention_heads=m["heads"], num_key_value_heads=m["kv_heads"], head_dim=m["head_dim"],
        max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=shapes.PAD, eos_token_id=shapes.EOS,
        bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


class Gate(transformers.TrainerCallback):
    """Holds the trainer before each step until it is asked for one."""

    def __init__(self):
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)

    def on_step_begin(self, *_, **__):
        self.go.acquire()

    def on_step_end(self, *_, **__):
        self.done.release()


def trainer(shape, callbacks=()):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="trl-"))
    save_model(folder / "model")

    def rewards(completions, **_):
        return [shapes.reward(text) for text in completions]

    config = trl.RLOOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", disable_tqdm=True, logging_steps=1000, max_steps=1000, learning_rate=shapes.LEARNING_RATE,
        per_device_train_batch_size=shape.sequences, num_generations=shape.rollouts, num_iterations=1,
        steps_per_generation=1, gradient_accumulation_steps=1, max_completion_length=shape.tokens, beta=shapes.KL_WEIGHT,
        temperature=1.0, top_p=1.0, top_k=0, max_grad_norm=1.0, optim="adamw_torch_fused",
    )  # fmt: skip
    rows = [{"prompt": shapes.text(p)} for p in shapes.prompts(shape)] * 1000
    made = trl.RLOOTrainer(
        model=str(folder / "model"), reward_funcs=rewards, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(), callbacks=list(callbacks),
    )  # fmt: skip
    assert next(made.model.parameters()).dtype == torch.float32
    return made


def build(benchmark, shape):
    if benchmark == "rl_step":
        gate = Gate()
        threading.Thread(target=trainer(shape, [gate]).train, daemon=True).start()

        def step():
            gate.go.release()
            gate.done.acquire()

        return step
    rloo = trainer(shape)
    repeated = [p for p in shapes.prompts(shape) for _ in range(shape.rollouts)]
    if benchmark == "rollout":

        def rollout():
            assert len(rloo._generate_single_turn(repeated, None, {})) == shape.sequences

        return rollout
    return updating(rloo, shape, repeated)


def updating(rloo, shape, repeated):
    ids = torch.tensor([[0] * (shape.slots - len(p)) + p for p in repeated])
    completion_ids = torch.tensor(shapes.completions(shape))
    inputs = {
        "prompt_ids": ids, "prompt_mask": (ids != 0).long(), "completion_ids": completion_ids,
        "completion_mask": torch.ones_like(completion_ids),
        "advantages": torch.tensor(np.random.default_rng(1).normal(size=shape.sequences), dtype=torch.float32),
        "old_logps": torch.full((shape.sequences,), -8.3 * shape.tokens),
    }  # fmt: skip
    both = torch.cat([ids, completion_ids], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    optimizer = rloo.create_optimizer()
    rloo.model.train()

    def update():
        with torch.no_grad():
            rloo._get_per_token_logps_and_entropies(rloo.ref_model, both, mask, shape.tokens)
        loss = rloo.compute_loss(rloo.model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rloo.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update

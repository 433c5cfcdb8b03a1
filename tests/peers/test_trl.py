"""Our reward functions inside TRL's own RLOOTrainer and GRPOTrainer, on a tiny random model.

pip install -e '.[test,trl]' && pytest -m peers -n 0 tests/peers/test_trl.py
"""

import pathlib
import sys
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from infalign_jax.core import transforms
from infalign_jax.integrations import trl as ours
from tests.peers.recording import recording

pytestmark = pytest.mark.peers
WORDS = ["the", "a", "red", "blue", "old", "young", "fox", "bird", "runs", "sings", "and", "or", "user", "assistant"]
PROMPTS = ["the red fox", "a blue bird", "the old fox and", "a young bird or"]
G = 4


def length(prompts, completions):
    """Reward: words of a completion, and the prompt's own offset and scale, which calibration takes away."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [len(set(text.split())) * (1 + 10 * PROMPTS.index(words(p))) for p, text in zip(prompts, texts, strict=True)]


def words(prompt):
    return prompt if isinstance(prompt, str) else prompt[0]["content"]


TABLE = {p: (np.arange(9) * (1 + 10 * i)).tolist() for i, p in enumerate(PROMPTS)}  # 0 to 8 different words


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(tokenizer, folder of the model): TRL loads the reference policy from the folder of the policy."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}assistant "
    sizes = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    ids = dict(pad_token_id=0, eos_token_id=1, bos_token_id=None)
    config = transformers.Qwen2Config(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes, **ids)
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return tokenizer, str(folder)


def train(kind, tiny, reward, rows, folder, steps=2, **changes):
    """A trainer after some steps, with `seen`, the advantages of each step."""
    tokenizer, model = tiny
    base, config_class = {"rloo": (trl.RLOOTrainer, trl.RLOOConfig), "grpo": (trl.GRPOTrainer, trl.GRPOConfig)}[kind]

    class Recording(base):
        seen = ()

        def _generate_and_score_completions(self, inputs):
            out = super()._generate_and_score_completions(inputs)
            self.seen = (*self.seen, out["advantages"].detach().numpy().copy())
            return out

    args = config_class(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2 * G, num_generations=G, logging_steps=1,
        max_completion_length=8, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
        **{"learning_rate": 1e-3, **ours.settings(reward, kind), **changes},
    )  # fmt: skip
    trainer = Recording(
        model=model, reward_funcs=reward, args=args,
        train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    return trainer


def by_hand(prompts, raw):
    """u and standardised exp(10 u) by the formulas."""
    rows = [np.array(TABLE[words(p)]) for p in prompts]
    u = np.array([np.mean(row < r) + np.mean(row == r) / 2 for row, r in zip(rows, raw, strict=True)])
    return u, transforms.standardize(transforms.exponential(10))(u)


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_scores_reach_the_advantages_with_their_scale(kind, tiny, tmp_path):
    reward = ours.RewardFunction(length, "exponential(10)", kl=0.5, table=TABLE)
    calls = recording(reward)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(beta|scale_rewards|normalize_advantages|reward_clip_range).*")
        trainer = train(kind, tiny, reward, [{"prompt": p} for p in PROMPTS], tmp_path)
    for prompts, raw, u, scores in calls:
        expected_u, expected = by_hand(prompts, raw)
        np.testing.assert_allclose(u, expected_u, atol=1e-6)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    scores_BR = np.reshape(calls[0][3], (-1, G))
    centred_BR = scores_BR - scores_BR.mean(1, keepdims=True)
    expected = centred_BR * (G / (G - 1) if kind == "rloo" else 1)  # the first step: policy and reference are the same
    np.testing.assert_allclose(trainer.seen[0], expected.ravel(), rtol=1e-4, atol=1e-4)
    assert np.ptp(scores_BR) > 0
    logged = [row for row in trainer.state.log_history if "calibrated" in row]
    assert [row["calibrated"] for row in logged] == pytest.approx([np.mean(u) for _, _, u, _ in calls], abs=1e-3)
    assert f"rewards/{reward.__name__}/mean" in logged[0] and reward.__name__ == "exponential(10)_of_length"


def test_training_raises_the_calibrated_reward(tiny, tmp_path):
    reward = ours.RewardFunction(length, "identity", table=TABLE)
    calls = recording(reward)
    train("rloo", tiny, reward, [{"prompt": p} for p in PROMPTS], tmp_path, steps=40, learning_rate=3e-2, beta=0.05)
    first, last = (np.mean([np.mean(u) for _, _, u, _ in part]) for part in (calls[:10], calls[-10:]))
    print(f"calibrated reward {first:.3f} -> {last:.3f}")
    assert last > first + 0.03


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("grpo", {"scale_rewards": "group"}, "scale_rewards is 'group'"),
        ("grpo", {"multi_objective_aggregation": "normalize_then_sum"}, "multi_objective_aggregation divides"),
        ("rloo", {"normalize_advantages": True}, "normalize_advantages is True"),
        ("rloo", {"reward_clip_range": (-1.0, 1.0)}, "reward_clip_range is (-1.0, 1.0)"),
        ("rloo", {"beta": 0.05}, "beta is 0.05, but a KL of 0.5 nats per sequence asks for about"),
        ("grpo", {"beta": 0.0}, "beta is 0.0: nothing holds"),
    ],
)
def test_a_setting_that_undoes_the_transform_is_warned_about(kind, changes, words, tiny, tmp_path):
    reward = ours.RewardFunction(length, "exponential(10)", kl=0.5, table=TABLE)
    with pytest.warns(UserWarning) as caught:
        train(kind, tiny, reward, [{"prompt": p} for p in PROMPTS], tmp_path, steps=1, **changes)
    assert sum(words in str(warning.message) for warning in caught) == 1


def test_messages_and_reference_rewards_in_a_column(tiny, tmp_path):
    reward = ours.RewardFunction(length, "exponential(10)", column="reference_rewards")
    calls = recording(reward)
    rows = [{"prompt": [{"role": "user", "content": p}], "reference_rewards": TABLE[p]} for p in PROMPTS]
    train("rloo", tiny, reward, rows, tmp_path, steps=1, beta=0.5)
    prompts, raw, u, scores = calls[0]
    assert isinstance(prompts[0], list)
    np.testing.assert_allclose(u, by_hand(prompts, raw)[0], atol=1e-6)
    np.testing.assert_allclose(scores, by_hand(prompts, raw)[1], rtol=1e-5, atol=1e-6)


def test_a_sampler_is_asked_once_for_each_prompt(tiny, tmp_path):
    tokenizer, folder = tiny
    model, asked = transformers.Qwen2ForCausalLM.from_pretrained(folder), []

    def sample(prompts, n):
        asked.extend(prompts)
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        out = model.generate(**inputs, do_sample=True, num_return_sequences=n, max_new_tokens=8)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return np.array(texts, object).reshape(len(prompts), n)

    reward = ours.RewardFunction(length, "identity", kl=0.5, sampler=sample, rollouts=32)
    calls = recording(reward)
    train("rloo", tiny, reward, [{"prompt": p} for p in PROMPTS], tmp_path, steps=4)
    assert sorted(asked) == sorted(PROMPTS) and all(len(row) == 32 for row in reward.known.values())
    prompts, raw, u, _ = calls[0]
    for prompt, reward_, u_ in zip(prompts, raw, u, strict=True):
        row = reward.known[prompt]
        assert u_ == pytest.approx(np.mean(row < reward_) + np.mean(row == reward_) / 2, abs=1e-6)
    assert 0.25 < np.mean([u for call in calls for u in call[2]]) < 0.75  # policy and reference are nearly the same

"""Policies loaded from folders: log-probabilities by hand, responses of the right shape, ours and Hugging Face's alike."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
pytest.importorskip("safetensors")

import infalign_jax
from infalign_jax.data import chat
from infalign_jax.models import hf, lora, transformer
from infalign_jax.stages.classifier import classifier_reward
from infalign_jax.stages.reward import open_reward
from infalign_jax.training.mesh import make_mesh
from tests import hf_model

TEXTS = ["the red fox runs", "a blue bird sings well", "fox and bird", "\n\nHuman: the\n\nAssistant: a"]
PROMPTS, COMPLETIONS = ["the red", "a blue bird", "fox and"], ["fox runs", "sings", "bird sings well"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_model.write(tmp_path_factory.mktemp("hf") / "model", hf_model.GEMMA2, TEXTS)


@pytest.fixture(scope="module")
def policy(folder):
    return infalign_jax.load_policy(folder)


def test_log_probs_are_those_of_the_logits(policy):
    """One pair at a time, without padding, from the logits of the whole text."""
    found = policy.log_probs(PROMPTS, COMPLETIONS)
    for value, prompt, completion in zip(found, PROMPTS, COMPLETIONS, strict=True):
        head = [policy.tokenizer.bos_id, *policy.tokenizer.encode(prompt)]
        tail = [*policy.tokenizer.encode(completion), policy.tokenizer.eos_id]
        rows = np.asarray(policy.logits([head + tail])[0], np.float64)
        rows = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        expected = sum(rows[len(head) - 1 + i, token] for i, token in enumerate(tail))
        assert value == pytest.approx(expected, rel=1e-5)


def test_logits_of_padded_rows_are_those_of_the_rows(policy):
    whole = policy.logits([[2, 5, 6, 7]])
    padded = policy.logits([[0, 0, 2, 5, 6, 7]], [4])
    np.testing.assert_allclose(padded[:, 2:], whole, rtol=1e-4, atol=1e-5)


def test_generation_follows_its_seed_and_greedy_picks_the_best_token(policy):
    texts = policy.generate(PROMPTS, n=3, max_tokens=5, seed=1)
    assert [len(row) for row in texts] == [3, 3, 3]
    assert texts == policy.generate(PROMPTS, n=3, max_tokens=5, seed=1)
    assert texts != policy.generate(PROMPTS, n=3, max_tokens=5, seed=2)
    (greedy,), (ended,) = policy.rollouts(PROMPTS[:1], max_tokens=1, temperature=0.0)
    tokens = [policy.tokenizer.bos_id, *policy.tokenizer.encode(PROMPTS[0])]
    best = int(policy.logits([tokens])[0, -1].argmax())
    assert greedy == [policy.tokenizer.decode([best])]
    assert ended[0] == (best == policy.tokenizer.eos_id)
    for bad, words in (("the red", "one string"), ([], "empty")):
        with pytest.raises(ValueError, match=words):
            policy.generate(bad)


def test_responses_end_before_stop_strings(policy):
    """Those without one are as before; the others are cut before it, and have ended."""
    options = dict(n=3, max_tokens=5, seed=1)
    plain, plain_ended = policy.rollouts(PROMPTS, **options)
    stop = plain[0][0][1:3]  # two letters, that no piece of the tokeniser begins with
    cut, ended = policy.rollouts(PROMPTS, stop=stop, **options)
    assert cut == [[text.split(stop)[0] for text in row] for row in plain] and cut != plain
    np.testing.assert_array_equal(ended, plain_ended | [[stop in text for text in row] for row in plain])
    with pytest.raises(ValueError, match="stop is"):
        policy.generate(PROMPTS, stop=("",))


def test_end_ids_come_from_the_generation_config_too(tmp_path):
    assert hf.end_ids("", 1) == (1,)
    for value, expected in ((None, (1,)), (7, (1, 7)), ([1, 7, 9], (1, 7, 9))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        assert hf.end_ids(tmp_path, 1) == expected


def test_an_adapter_folder_brings_its_base(policy, folder, tmp_path):
    adapters = lora.init(policy.config, jax.random.key(0), 2, ("q", "down"))["lora"]
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    config = policy.config.replace(lora_scale=0.5)
    lora.save(tmp_path, config, adapters, folder)
    loaded = infalign_jax.load_policy(tmp_path)
    tokens = [[2, 5, 6, 7]]
    merged = lora.merge(config, {**policy.variables, "lora": adapters})
    hidden = transformer.forward(config, merged, np.array(tokens), np.array([4]))
    expected = transformer.unembed(config, merged, hidden)
    np.testing.assert_allclose(loaded.logits(tokens), expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), loaded.params, merged["params"])


def test_ids_beyond_the_tokenizer_have_no_text(policy):
    """Vocabularies of published models are padded to round sizes."""
    tokenizer, ids = policy.tokenizer, policy.tokenizer.encode("the red fox")
    assert tokenizer.decode([*ids[:1], tokenizer.vocab_size + 2, *ids[1:]]) == "the red fox"


def test_a_folder_without_a_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no policy"):
        infalign_jax.load_policy(tmp_path)


TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("templated", [False, True])
def test_a_classifier_scores_the_text_at_its_last_token(tmp_path, templated):
    folder = hf_model.write(tmp_path / "rm", hf_model.QWEN3, TEXTS, kind="bpe", reward_head=True)
    if templated:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "bos_token": "<s>"}))
    reward = classifier_reward(f"hf:{folder}", make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]))
    prompts = ["\n\nHuman: the red\n\nAssistant:", "the blue"]
    found = reward(prompts, [" fox runs", " bird"])
    texts = ["<s><user>the red<assistant>fox runs", "<s><user>the blue<assistant>bird"]
    texts = texts if templated else [prompts[0] + " fox runs", "the blue bird"]
    config, variables = hf.load(folder, reward_head=True)
    from infalign_jax.data import tokenizer as tokenizers

    tokenizer = tokenizers.load(folder)
    for value, text in zip(found, texts, strict=True):
        ids = tokenizer.encode(text)
        ids = ids if ids[0] == tokenizer.bos_id else [tokenizer.bos_id, *ids]
        hidden = transformer.forward(config, variables, np.array([ids]), np.array([len(ids)]))[0, -1]
        assert value == pytest.approx(float(hidden @ variables["params"]["reward_head"]["kernel"]), rel=1e-4)


def test_plain_turns_are_read_back_as_messages():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what?\n\nnow"},
        {"role": "assistant", "content": "that"},
        {"role": "user", "content": "why"},
    ]
    assert chat.messages_of(chat.plain_prompt(messages)) == messages
    for text in ("why", "x\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: b"):
        assert chat.messages_of(text) == [{"role": "user", "content": text}]


def test_a_classifier_gets_the_dialogue_that_a_prompt_was_made_of(tmp_path):
    """The policy's own template wrote the prompt; the reward model's template is applied to the messages behind it."""
    from types import SimpleNamespace

    from infalign_jax.data.dataset import Dataset, Prompt

    folder = hf_model.write(tmp_path / "rm", hf_model.QWEN3, TEXTS, kind="bpe", reward_head=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    prompt = Prompt("[INST]the red[/INST]", messages=({"role": "user", "content": "the red"},))
    config = SimpleNamespace(model={"dtype": "float32", "param_dtype": "float32"})
    experiment = SimpleNamespace(config=config, mesh=mesh, dataset=Dataset(train_prompts=[prompt]))
    reward = open_reward(experiment, f"hf:{folder}", None)
    known, unknown = reward([prompt.text, "\n\nHuman: the red\n\nAssistant:"], ["fox", "fox"])
    assert known == pytest.approx(unknown, rel=1e-5)
    assert abs(known - reward(["[INST]the blue[/INST]"], ["fox"])[0]) > 1e-4

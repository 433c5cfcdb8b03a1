"""What alignment leaves behind, read by `transformers` and `peft`; rewards and chat templates as theirs."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
tokenizers = pytest.importorskip("tokenizers")

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from infalign_jax import load_policy, main
from infalign_jax.data import chat
from infalign_jax.models import hf, hf_save, lora
from infalign_jax.stages.classifier import classifier_reward
from infalign_jax.training.mesh import make_mesh
from tests import tiny
from tests.peers.families import FAMILIES, make

pytestmark = pytest.mark.peers
TOKENS = np.random.default_rng(0).integers(3, 99, size=(2, 30))
WORDS = [w for t in ("the a red blue green fox bird runs sings", "likes : . plain warm") for w in t.split()]


def their_logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(tokens)).logits.float().numpy()


def error(ours, theirs):
    """Largest difference over the scale of the logits."""
    value = float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())
    print(f"relative error {value:.1e}")
    return value


def causal(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_and_merged_models_give_our_logits(name, tmp_path):
    make(name, tmp_path / "base")
    config, base = hf.load(tmp_path / "base")
    config = config.replace(lora_scale=8 / 3)
    start, tree = jax.tree.flatten(lora.init(config, jax.random.key(0), 3, lora.TARGETS))
    rng = np.random.default_rng(0)
    adapters = tree.unflatten([rng.normal(size=x.shape).astype(np.float32) * 0.1 for x in start])
    policy = {**base, **adapters}
    lora.save(tmp_path / "adapter", config, adapters["lora"], tmp_path / "base")
    hf_save.save(tmp_path / "merged", config, lora.merge(config, policy), tmp_path / "base")

    from infalign_jax.policy import _logits

    ours = np.asarray(_logits(config, policy, TOKENS, np.full(2, TOKENS.shape[1])))
    assert np.abs(ours - their_logits(causal(tmp_path / "base"))).max() > 0.05 * np.abs(ours).max()
    assert error(ours, their_logits(causal(tmp_path / "merged"))) <= 2e-4
    adapted = peft.PeftModel.from_pretrained(causal(tmp_path / "base"), tmp_path / "adapter")
    assert error(ours, their_logits(adapted)) <= 2e-4

    adapted.save_pretrained(tmp_path / "theirs")  # and back: an adapter that PEFT wrote
    again, loaded = lora.load(tmp_path / "theirs", config.replace(lora_scale=1.0))
    assert again.lora_scale == pytest.approx(8 / 3)
    jax.tree.map(np.testing.assert_array_equal, adapters, loaded)


def write_tokenizer(folder, template=None):
    vocabulary = {
        word: i for i, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<user>", "<assistant>", *WORDS])
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"], chat_template=template,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return fast, len(vocabulary)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("name", ["gemma2", "qwen3"])
def test_the_pipeline_ends_in_a_model_that_transformers_reads(name, rank, tmp_path):
    _, size = write_tokenizer(tmp_path / "model")
    make(name, tmp_path / "model", vocab_size=size, num_hidden_layers=2)
    rows = [
        {"prompt": f"the {a} {b} :", "completion": f"{c} ."} for a in WORDS[2:5] for b in WORDS[5:7] for c in WORDS[6:8]
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny.get_config()
    with config.unlocked():
        config.data.name, config.data.path, config.data.test_fraction = "jsonl", str(tmp_path / "data.jsonl"), 0.3
        config.data.test_prompts = 0
        config.model.path, config.lora.rank, config.sft.steps = str(tmp_path / "model"), rank, 0 if rank else 2
        config.reward, config.judge = "tests.peers.test_alignment_parity:longer", "none"
        config.calibrate.rollouts, config.calibrate.held_out = 8, 2
        config.align.methods, config.align.steps, config.align.learning_rate = ("identity",), 3, 1e-2
        config.evaluate.samples, config.evaluate.best_of, config.evaluate.worst_of = 4, (4,), ()
        config.evaluate.kl_tolerance = 1.0
    main.run("run", config, tmp_path / "run")
    folder = tmp_path / "run" / "align" / "identity" / "seed_0"
    tokens = TOKENS % size
    ours = np.asarray(load_policy(folder).logits(tokens))
    assert error(ours, their_logits(causal(folder / "hf"), tokens)) <= 2e-4
    assert np.abs(ours - their_logits(causal(tmp_path / "model"), tokens)).max() > 1e-2
    if rank:
        adapted = peft.PeftModel.from_pretrained(causal(tmp_path / "model"), folder / "adapter")
        assert error(ours, their_logits(adapted, tokens)) <= 2e-4
    prompt = "the red fox :"
    loaded = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    assert loaded(prompt, add_special_tokens=False).input_ids == load_policy(folder).tokenizer.encode(prompt)


def longer(prompts, completions):
    return [len(text) + 0.01 * (hash(text) % 7) for text in completions]


TURNS = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] | trim }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.mark.parametrize("name", ["gemma2", "llama", "qwen3"])
@pytest.mark.parametrize("templated", [False, True])
def test_classifier_rewards_are_their_scores_of_the_texts(name, templated, tmp_path):
    theirs, size = write_tokenizer(tmp_path, TURNS if templated else None)
    model = make(name, tmp_path, kind="ForSequenceClassification", num_labels=1, vocab_size=size)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    prompts = [
        "\n\nHuman: the red fox\n\nAssistant:",
        "\n\nHuman: a bird\n\nAssistant: sings\n\nHuman: likes\n\nAssistant:",
    ]
    completions = [" runs .", " the warm bird sings ."]
    rewards = classifier_reward(f"hf:{tmp_path}", mesh)(prompts, completions)
    for prompt, completion, reward in zip(prompts, completions, rewards, strict=True):
        if templated:
            messages = [*chat.messages_of(prompt), chat.answer(completion)]
            ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        else:
            ids = theirs(prompt + completion).input_ids
        with torch.no_grad():
            score = model(input_ids=torch.tensor([ids])).logits.item()
        np.testing.assert_allclose(reward, score, rtol=2e-4, atol=2e-4)

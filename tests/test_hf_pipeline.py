"""From a Hugging Face folder to an aligned one, all parameters and adapters; adapters by themselves."""

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
pytest.importorskip("safetensors")

from infalign_jax import load_policy, main
from infalign_jax.data import synthetic
from infalign_jax.models import hf, lora, transformer
from infalign_jax.models.config import TransformerConfig
from infalign_jax.stages import policies, settings
from infalign_jax.stages.experiment import load_reference, open_experiment
from tests import hf_model, tiny

MODEL = TransformerConfig(
    vocab_size=19, num_layers=2, embed_dim=8, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=10, lora_scale=0.7
)
TOKENS = jnp.array([[3, 4, 5, 6, 7], [0, 0, 8, 9, 10]])
LENGTHS = jnp.array([5, 3])


@functools.partial(jax.jit, static_argnums=0)
def logits(config, variables, tokens=TOKENS, lengths=LENGTHS):
    return transformer.unembed(config, variables, transformer.forward(config, variables, tokens, lengths))


def random_adapters(config, rank=3, targets=lora.TARGETS):
    """Adapters whose B is not 0."""
    start = lora.init(config, jax.random.key(1), rank, targets)
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return tree.unflatten([0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def test_fresh_adapters_change_nothing_and_merged_ones_compute_the_same():
    base = transformer.init(MODEL, jax.random.key(0))
    fresh = {**base, **lora.init(MODEL, jax.random.key(1), 3, lora.TARGETS)}
    np.testing.assert_array_equal(logits(MODEL, fresh), logits(MODEL, base))
    policy = {**base, **random_adapters(MODEL)}
    adapted = logits(MODEL, policy)
    assert np.abs(adapted - logits(MODEL, base)).max() > 0.1
    merged = lora.merge(MODEL, policy)
    assert set(merged) == {"params"}
    np.testing.assert_allclose(logits(MODEL, merged), adapted, rtol=1e-4, atol=1e-5)
    assert lora.merge(MODEL, base) is base


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_interpolated_adapters_are_interpolated_parameters(alpha):
    base = transformer.init(MODEL, jax.random.key(0))
    trained = random_adapters(MODEL)
    by_adapters = lora.merge(MODEL, policies.interpolate(base, trained, alpha))
    by_parameters = policies.interpolate(base, lora.merge(MODEL, {**base, **trained}), alpha)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), by_adapters, by_parameters)


def test_adapters_survive_the_disk_and_broken_folders_are_named(tmp_path):
    trained = random_adapters(MODEL, targets=("q", "o", "down"))
    lora.save(tmp_path, MODEL, trained["lora"], "some/base")
    config, again = lora.load(tmp_path, MODEL.replace(lora_scale=1.0))
    assert config.lora_scale == pytest.approx(0.7)
    jax.tree.map(np.testing.assert_array_equal, trained, again)
    values = json.loads((tmp_path / lora.CONFIG_FILE).read_text())
    assert sorted(values["target_modules"]) == ["down_proj", "o_proj", "q_proj"]
    with pytest.raises(ValueError, match="this model calls for"):
        lora.load(tmp_path, MODEL.replace(embed_dim=12))
    with pytest.raises(ValueError, match="no place for"):
        lora.load(tmp_path, MODEL.replace(num_layers=1))
    for change, words in (({"use_dora": True}, "use_dora"), ({"peft_type": "IA3"}, "'IA3'")):
        (tmp_path / lora.CONFIG_FILE).write_text(json.dumps({**values, **change}))
        with pytest.raises(ValueError, match=words):
            lora.load(tmp_path, MODEL)
    with pytest.raises(ValueError, match=r"adapter_config\.json does not exist"):
        lora.load(tmp_path / "none", MODEL)
    with pytest.raises(ValueError, match="target is 'w'"):
        lora.init(MODEL, jax.random.key(0), 2, ("w",))


def recipe(model, rank):
    config = tiny.get_config()
    with config.unlocked():
        config.model.path = str(model)
        config.lora.rank = rank
        config.sft.steps = 0 if rank else 3
        config.calibrate.rollouts, config.calibrate.held_out = 8, 2
        config.align.methods = ("identity",)
        config.align.steps, config.align.save_every = 3, 2
        config.align.learning_rate = 2e-2
    return config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    texts = synthetic.load(
        path="", seed=0, test_prompts=12, demonstrations_per_prompt=4, preferences_per_prompt=1
    ).texts()
    return hf_model.write(tmp_path_factory.mktemp("hf") / "model", hf_model.GEMMA2, texts)


def test_sft_starts_from_the_folder_and_ends_in_one(model, tmp_path):
    config = recipe(model, 0)
    with config.unlocked():
        config.sft.learning_rate = 1e-30  # three steps of nothing: what comes out is what went in
    main.run("sft", config, tmp_path)
    base, trained = hf.load(model)[1], load_policy(tmp_path / "sft")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), base, trained.variables)
    jax.tree.map(np.testing.assert_array_equal, trained.variables, hf.load(tmp_path / "sft" / "hf")[1])
    assert (tmp_path / "sft" / "hf" / "tokenizer.model").read_bytes() == (model / "tokenizer.model").read_bytes()
    log = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert len(log) == 3 and all(row["gradient_norm"] > 0 for row in log)


@pytest.mark.slow  # tests/test_recipes.py does as much with adapters
@pytest.mark.parametrize("rank", [0, 2])
def test_from_a_folder_to_a_folder(model, tmp_path, rank):
    config = recipe(model, rank)
    with config.unlocked():
        config.evaluate.samples, config.evaluate.best_of, config.evaluate.worst_of = 4, (4,), ()
        config.evaluate.headline, config.evaluate.curve, config.evaluate.kl_tolerance = "best_of(4)", (), 1.0
    main.run("run", config, tmp_path)
    results = json.loads((tmp_path / "evaluate" / "results.json").read_text())
    assert {row["method"] for row in results} >= {"identity"} and all(0 <= row["win_rate"] <= 1 for row in results)
    experiment = open_experiment(settings.resolve(config, tmp_path))
    reference, folder = load_reference(experiment), tmp_path / "align" / "identity" / "seed_0"
    base = hf.load(model)[1]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), base, reference)
    assert all(jax.tree.leaves(same)) == bool(rank)  # steps 0: the folder's model is the reference
    assert (tmp_path / "sft" / "variables").exists() != bool(rank)
    trained = policies.load_trained(experiment, folder / "variables")
    assert set(trained) == {"lora" if rank else "params"}
    aligned, variables = hf.load(folder / "hf")
    expected = logits(experiment.model, {**reference, **trained})
    np.testing.assert_allclose(logits(aligned, variables), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - logits(aligned, reference)).max() > 1e-3
    for loaded in (load_policy(folder), load_policy(folder / "hf")):
        np.testing.assert_allclose(loaded.logits(TOKENS, LENGTHS), expected, rtol=1e-4, atol=1e-5)
        assert loaded.tokenizer.vocab_size == aligned.vocab_size
    taken = load_policy(tmp_path / "sft")
    np.testing.assert_allclose(taken.logits(TOKENS, LENGTHS), logits(aligned, reference), rtol=1e-4, atol=1e-5)
    assert (folder / "hf" / "tokenizer.model").read_bytes() == (model / "tokenizer.model").read_bytes()
    assert (folder / "adapter").exists() == bool(rank)
    if rank:
        scaled, adapters = lora.load(folder / "adapter", aligned)
        np.testing.assert_allclose(logits(scaled, {**base, **adapters}), expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_a_folder_is_refused(model, tmp_path):
    for changes, words in (
        ({"model.path": str(tmp_path / "none")}, r"config.model.path is .*config\.json does not exist"),
        ({"tokenizer.path": "t.model"}, "brings a tokenizer of its own"),
        ({"model.path": ""}, "config.sft.steps is 0"),
    ):
        config = recipe(model, 2)
        with config.unlocked():
            config.update_from_flattened_dict(changes)
        with pytest.raises(ValueError, match=words):
            settings.resolve(config, tmp_path)


@pytest.mark.slow  # tests/peers compares the scores themselves with transformers'
def test_the_whole_pipeline_with_a_classifier_as_reward_and_judge(model, tmp_path):
    """Rewards of a Hugging Face classifier with a tokeniser of its own, and a chat template, from `sft` to `evaluate`."""
    texts = [
        "the red fox runs over the hill",
        "a garden , an ocean and a city : plain",
        "oak moss trail owl pine wave reef",
    ]
    for name, layout, seed in (("reward", hf_model.QWEN3, 1), ("judge", hf_model.GEMMA2, 2)):
        hf_model.write(tmp_path / name, layout, texts, kind="bpe", reward_head=True, seed=seed)
    (tmp_path / "reward" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }} : {{ m.content | trim }}\n{% endfor %}"
    )
    config = recipe(model, 2)
    with config.unlocked():
        config.reward, config.judge = f"hf:{tmp_path / 'reward'}", f"hf:{tmp_path / 'judge'}"
        config.prefix_scorer.enabled, config.prefix_scorer.steps = True, 3
        config.evaluate.samples, config.evaluate.best_of, config.evaluate.worst_of = 4, (4,), ()
        config.evaluate.headline, config.evaluate.curve, config.evaluate.kl_tolerance = "best_of(4)", (), 1.0
    main.run("run", config, tmp_path / "run")
    table = np.load(tmp_path / "run" / "calibrate" / "table.npz")["rewards"]
    prompts = json.loads((tmp_path / "run" / "calibrate" / "prompts.json").read_text())["prompts"]
    assert len(prompts) == len(table) and np.unique(table).size > table.shape[0]
    rows = json.loads((tmp_path / "run" / "evaluate" / "results.json").read_text())
    assert {row["judge"] for row in rows} == {"train", "gold"} and all(0 <= row["win_rate"] <= 1 for row in rows)

    # The same rewards from the shell, by the same classifier; the scorer of the run decodes.
    (tmp_path / "prompts.txt").write_text(prompts[0] + "\n")
    folder = tmp_path / "run" / "align" / "identity" / "seed_0"
    flags = {
        "policy": folder / "hf", "reward": config.reward, "prompts": tmp_path / "prompts.txt", "out": tmp_path / "out.jsonl",
        "table": tmp_path / "run" / "calibrate", "scorer": tmp_path / "run" / "prefix_scorer",
        "procedure": "blockwise(2,4)", "max_tokens": 8,
    }  # fmt: skip
    main.main(["generate", *[f"--{name}={value}" for name, value in flags.items()]])
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert row["calibrated_by"] == "table" and len(row["blocks"][0]["candidates"]) == 2
    u = np.mean((table[0] < np.float32(row["reward"])) + 0.5 * (table[0] == np.float32(row["reward"])))
    assert row["calibrated"] == pytest.approx(u)

"""The recipes for real models: each resolves as it stands, and takes two steps of every stage with its sizes shrunk."""

import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
pytest.importorskip("safetensors")
pytest.importorskip("jinja2")

from infalign_jax import load_policy, main, recipe
from infalign_jax.data import chat, dataset
from infalign_jax.stages import settings
from tests import hf_model, test_data_anthropic_hh, test_data_tldr

TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
QUESTIONS = [f"Question {n} about the {thing}" for n in range(4) for thing in ("fox", "bird")]


def hh(folder, subset):
    for split, numbers in (("train", range(12)), ("test", range(20, 24))):
        test_data_anthropic_hh.write(folder, split, map(test_data_anthropic_hh.pair, numbers), subset=subset)


def tldr(folder):
    pairs = [test_data_tldr.comparison(n) for n in range(6)] + [test_data_tldr.comparison(6, "valid1")]
    test_data_tldr.write(folder / "comparisons/batch3.json", pairs)
    for split, numbers in (("train", range(8)), ("valid", range(11, 12)), ("test", range(8, 11))):
        rows = [test_data_tldr.post(n) | {"summary": f" Sum {n}"} for n in numbers]
        test_data_tldr.write(folder / f"tldr_3_filtered/{split}.jsonl", rows)


def dialogues(folder):
    folder.mkdir()
    rows = [
        {
            key: [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for key, answer in (("chosen", f"Yes, {n}."), ("rejected", "No."))
        }
        for n, question in enumerate(QUESTIONS)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = [
        {**row, "chosen": [{"role": "user", "content": f"Else {n}?"}, *row["chosen"][1:]]}
        for n, row in enumerate(rows[:3])
    ]
    more = [{**row, "rejected": [row["chosen"][0], *row["rejected"][1:]]} for row in more]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))


# name -> (what makes its data, the layout of its model)
RECIPES = {
    "hh_helpful_gemma2_2b": (lambda folder: hh(folder, "helpful-base"), hf_model.GEMMA2),
    "hh_harmless_gemma2_2b": (lambda folder: hh(folder, "harmless-base"), hf_model.GEMMA2),
    "tldr_gemma2_2b": (tldr, hf_model.GEMMA2),
    "ultrafeedback_like_jsonl_qwen3_0_6b": (dialogues, hf_model.QWEN3),
}


def get_recipe(name, tmp_path):
    """The recipe with a model and data made on the spot; only these two paths are changed."""
    write_data, layout = RECIPES[name]
    write_data(tmp_path / "data")
    config = recipe.parse([
        "--config", str(ROOT / "configs" / f"{name}.py"), f"--config.model.path={tmp_path / 'model'}",
        f"--config.data.path={tmp_path / 'data'}", f"--config.data.cache_dir={tmp_path / 'cache'}",
    ]).config  # fmt: skip
    blank = tmp_path / "template.jinja"
    blank.write_text(TEMPLATE)
    options = {key: config.data[key] for key in dataset.options_of(config.data.name)}
    if "chat_template" in options:
        options["chat_template"] = str(blank)
    texts = dataset.load(config.data.name, path=config.data.path, seed=0, **options).texts()
    hf_model.write(tmp_path / "model", layout, texts, kind="bpe")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    return config


def shrink(config):
    with config.unlocked():
        config.data.train_prompts, config.data.test_prompts = 4, 2
        config.data.prompt_tokens, config.data.response_tokens = 48, 4
        config.data.long_prompts = "truncate_left"
        config.sft.steps, config.sft.batch_size = min(config.sft.steps, 2), 4
        config.reward_model.steps, config.reward_model.batch_size = 2, 2
        config.calibrate.rollouts, config.calibrate.held_out, config.calibrate.prompts_per_call = 4, 2, 4
        config.sampling.truncated = "as_is"  # all of them are
        config.calibrate.mismatch = "ignore"  # two steps make no reward model
        config.align.steps, config.align.prompts_per_step, config.align.rollouts = 2, 2, 2
        config.align.methods, config.align.target_kl = config.align.methods[-1:], 0.1
        n = int(config.evaluate.headline.partition("(")[2].rstrip(")"))
        config.evaluate.samples, config.evaluate.prompts_per_call = n, 2
        for key in ("best_of", "worst_of"):
            config.evaluate[key] = (n,) if config.evaluate.headline.startswith(key) else ()
        config.evaluate.curve, config.evaluate.kl_tolerance = (), 1.0
    return config


@pytest.mark.parametrize("name", RECIPES)
def test_it_resolves(name, tmp_path):
    config = settings.resolve(get_recipe(name, tmp_path), tmp_path / "run")
    if config.data.name == "jsonl":
        assert chat.load_template(config.data.chat_template).source == TEMPLATE  # it followed --config.model.path
    unknown = recipe.load(ROOT / "configs" / f"{name}.py")
    with pytest.raises(ValueError, match=r"config\.model\.path is 'models/.* does not exist"):
        settings.resolve(unknown, tmp_path / "run")


@pytest.mark.timeout(1200)  # a minute of work each, on cores that may be busy
@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_every_stage(name, tmp_path):
    config = shrink(get_recipe(name, tmp_path))
    main.run("run", config, tmp_path / "run")
    (folder,) = (tmp_path / "run" / "align").glob("*/seed_0")
    results = json.loads((tmp_path / "run" / "evaluate" / "results.json").read_text())
    assert config.evaluate.headline in {f"{row['procedure']}({row['n']})" for row in results}
    tokens, exact = np.arange(3, 15)[None], {"dtype": "float32"}
    ours, exported, adapted = (load_policy(folder / part, **exact).logits(tokens) for part in ("", "hf", "adapter"))
    np.testing.assert_allclose(exported, ours, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(adapted, ours, rtol=1e-4, atol=1e-5)

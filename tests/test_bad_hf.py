"""Hugging Face folders that are damaged, foreign or hostile: one sentence with the file or key, and nothing in them is run."""

import json

import pytest

from infalign_jax.data import chat, hf_tokenizer
from infalign_jax.models import hf, hf_config, lora
from tests import hf_model
from tests.refusals import refused

pytest.importorskip("safetensors")
CONFIGS = {  # what config.json says instead of the good value: words of the sentence
    "model_type": [("evilnet", "supported are gemma2"), (["llama"], "model_type ['llama']"), (None, "model_type None"), ({}, "model_type {}")],
    "vocab_size": [(0, "vocab_size = 0"), (-3, "vocab_size = -3"), ("9", "vocab_size = '9'"), (None, "vocab_size = None"), (1.5, "vocab_size = 1.5")],
    "num_hidden_layers": [(0, "num_hidden_layers = 0"), ("2", "num_hidden_layers = '2'"), ([2], "num_hidden_layers = [2]")],
    "hidden_size": [(True, "hidden_size = True"), (-16, "hidden_size = -16"), ({}, "hidden_size = {}")],
    "num_attention_heads": [(0, "num_attention_heads = 0"), ("x", "num_attention_heads = 'x'")],
    "num_key_value_heads": [(0, "num_key_value_heads = 0"), (3, "num_kv_heads"), ("1", "num_key_value_heads = '1'")],
    "head_dim": [(0, "head_dim = 0"), (7, "head_dim"), (8.0, "head_dim = 8.0")],
    "intermediate_size": [(None, "intermediate_size = None"), ([32], "intermediate_size = [32]")],
    "hidden_act": [("sigmoidish", "activation 'sigmoidish'")],
    "rms_norm_eps": [("small", "rms_norm_eps = 'small'"), (-1e-6, "rms_norm_eps = -1e-06"), (float("inf"), "rms_norm_eps = inf")],
    "rope_theta": [("far", "rope_theta = 'far'"), (0, "rope_theta = 0")],
    "layer_types": [("full_attention", "layer_types = 'full_attention'"), ([3], "layer_types = [3]"), (["ring"], "supported are full_attention")],
    "attention_bias": [(True, "attention_bias = True")],
}  # fmt: skip
CASES = [(key, value, words) for key, cases in CONFIGS.items() for value, words in cases]
TEXTS = [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe\x00", b"[" * 100_000]  # of a file that must hold a JSON object


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return hf_model.write(tmp_path_factory.mktemp("hf") / "model", hf_model.QWEN3, ["hello world", "a b c"])


@pytest.fixture
def folder(good, tmp_path):
    """A copy that a test may damage; a module that must never be run lies in it."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in good.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "modeling_evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    change(copy / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Model"})
    yield copy
    assert not (tmp_path / "run").exists(), "code of the folder was executed"


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def load(folder):
    """Everything that is read of a folder before a model of it can run."""
    config = hf_config.from_hf(hf.read_config(folder))
    hf.end_ids(folder, 1)
    assert config.vocab_size > 0
    return hf.load(folder)[1]


def test_the_good_folder_loads(folder):
    assert load(folder)["params"]


@pytest.mark.parametrize(("key", "value", "words"), CASES, ids=lambda x: repr(x)[:30])
def test_values_of_config_json(key, value, words, folder):
    change(folder / "config.json", **{key: value})
    assert words in refused(lambda: load(folder))


@pytest.mark.parametrize("text", TEXTS, ids=lambda x: repr(x)[:20])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", hf.INDEX])
def test_files_that_hold_no_json_object(name, text, folder):
    (folder / name).write_bytes(text)
    line = refused(lambda: load(folder))
    assert str(folder / name) in line and ("not valid JSON" in line or "must be an object" in line)


@pytest.mark.parametrize("value", [{}, {"weight_map": []}, {"weight_map": {"a": 3}}])
def test_an_index_without_a_map(value, folder):
    (folder / hf.INDEX).write_text(json.dumps(value))
    assert f"{folder / hf.INDEX} has no weight_map" in refused(lambda: load(folder))


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -3])
def test_weights_that_are_cut_short(keep, folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    assert f"{path} is damaged" in refused(lambda: load(folder))


def test_weights_that_are_missing_or_pickled(folder):
    (folder / "model.safetensors").rename(folder / "elsewhere")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n(S'touch run'\ntR.")
    assert "model.safetensors does not exist; weights are read from safetensors files" in refused(lambda: load(folder))


def test_weights_of_another_model(folder):
    change(folder / "config.json", num_hidden_layers=3)
    assert "model.layers.2" in refused(lambda: load(folder))
    change(folder / "config.json", num_hidden_layers=2, intermediate_size=64)
    assert "mlp" in refused(lambda: load(folder))


@pytest.mark.parametrize("value", ["</s>", [1, "x"], 1.5, {"a": 1}])
def test_end_ids_that_are_none(value, folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert "generation_config.json has eos_token_id" in refused(lambda: load(folder))


@pytest.mark.parametrize("text", TEXTS, ids=lambda x: repr(x)[:20])
def test_adapters_and_templates_of_damaged_json(text, tmp_path):
    (tmp_path / lora.CONFIG_FILE).write_bytes(text)
    (tmp_path / lora.WEIGHTS_FILE).write_bytes(b"")
    line = refused(lambda: lora.load(tmp_path, hf_config.from_hf({**hf_model.QWEN3, "vocab_size": 9})))
    assert str(tmp_path / lora.CONFIG_FILE) in line
    (tmp_path / "tokenizer_config.json").write_bytes(text)
    if text not in (b"[1, 2]", b"null"):
        assert "tokenizer_config.json is not valid JSON" in refused(lambda: chat.find_template(tmp_path))


@pytest.mark.parametrize("text", [b"{", b"[1]", b"null", b"\xff"])
def test_tokenizer_files_of_damaged_json(text, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<eos>": 0, "a": 1}, unk_token="<eos>")).to_str().encode()
    files = {"tokenizer.json": whole, "tokenizer_config.json": text}
    said = refused(lambda: hf_tokenizer.HFTokenizer(files))
    assert "tokenizer_config.json is not valid" in said and "holds no JSON object" in said

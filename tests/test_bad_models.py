"""Damaged, foreign and hostile folders of models, tokenisers, templates: one sentence with file and key, and no code run."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("jinja2")
tokenizers = pytest.importorskip("tokenizers")

from infalign_jax import load_policy
from infalign_jax.data import chat
from infalign_jax.models import hf, lora
from infalign_jax.stages import experiment
from infalign_jax.stages.classifier import classifier_reward
from infalign_jax.training.mesh import make_mesh
from tests import hf_model
from tests.refusals import refused, resolved

SOURCE = pathlib.Path(__file__).parent / "hf_reference" / "llama"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WHOLE = "it must be a positive whole number"
CONFIGS = {  # key of config.json -> what it says instead of the good value, words of the sentence
    "model_type": [("evilnet", "supported are gemma2"), ("mamba", "model_type 'mamba'; supported are gemma2"), (["llama"], "model_type ['llama']"), (None, "model_type None"), ({}, "model_type {}")],
    "vocab_size": [(0, "vocab_size = 0"), (-3, "vocab_size = -3"), ("9", "vocab_size = '9'"), (None, "vocab_size = None"), (1.5, "vocab_size = 1.5"), (True, "config.json has vocab_size = True")],
    "num_hidden_layers": [(0, "num_hidden_layers = 0"), ("2", "num_hidden_layers = '2'"), ([2], "num_hidden_layers = [2]"), (3, "has no tensor model.layers.2"), (1, "has tensor model.layers.1")],
    "hidden_size": [(True, "hidden_size = True"), (-16, "hidden_size = -16"), ({}, "hidden_size = {}"), (None, f"config.json has hidden_size = None; {WHOLE}"), ("12", "config.json has hidden_size = '12'")],
    "num_attention_heads": [(0, "config.json has num_attention_heads = 0"), ("x", "num_attention_heads = 'x'")],
    "num_key_value_heads": [(0, "num_key_value_heads = 0"), (3, "num_kv_heads"), ("1", "num_key_value_heads = '1'"), (5, "num_kv_heads is 5; it must divide")],
    "head_dim": [(0, "head_dim = 0"), (7, "head_dim is 7; rotary positions need an even number"), (8.0, "head_dim = 8.0")],
    "intermediate_size": [(None, "intermediate_size = None"), ([32], "intermediate_size = [32]"), (11, "tensor model.layers.0.mlp.down_proj.weight has shape (12, 10); config.json calls for (12, 11")],
    "hidden_act": [("sigmoidish", "activation 'sigmoidish'"), ("relu", "activation 'relu'"), (["silu"], "activation ['silu']")],
    "rms_norm_eps": [("small", "config.json has rms_norm_eps = 'small'; it must be a positive number"), (-1e-6, "rms_norm_eps = -1e-06"), (float("inf"), "rms_norm_eps = inf")],
    "rope_theta": [("far", "rope_theta = 'far'"), (0, "rope_theta = 0")],
    "layer_types": [
        ("full_attention", "layer_types = 'full_attention'"), ([3], "layer_types = [3]"), (["ring"], "supported are full_attention"),
        (["full_attention"], "layer_types = ['full_attention']; it must list the 2 layers"),
        (["full_attention", "chunked_attention"], "layer_types ['chunked_attention']; supported are"),
        (["full_attention", "sliding_attention"], "sliding_window = None; it must be a positive whole"),
    ],
    "max_window_layers": [("x", "max_window_layers = 'x'")],
    "attention_bias": [(True, "attention_bias = True, which is not supported for llama")],
    "mlp_bias": [(True, "mlp_bias = True")],
    "is_causal": [(False, "is_causal = False")],
    "use_bidirectional_attention": [(True, "use_bidirectional_attention = True")],
    "quantization_config": [({"bits": 4}, "quantization_config = {'bits': 4}")],
    "rope_parameters": [
        ("yarn", "rope_parameters = 'yarn'; it must be an object"),
        ({"rope_type": "yarn", "factor": 4.0}, "rope type 'yarn'; supported are default, linear and llama3"),
        ({"rope_type": "linear"}, "config.json has factor = None; it must be a positive number"),
        ({**LLAMA3, "low_freq_factor": 0}, "low_freq_factor = 0; it must be a positive number"),
        (LLAMA3, "original_max_position_embeddings = None"),
        ({"rope_theta": "big"}, "rope_theta = 'big'"),
        ({"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ],
}  # fmt: skip
CASES = [(key, value, words) for key, cases in CONFIGS.items() for value, words in cases]
TEXTS = [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe\x00", b"[" * 100_000]  # of a file that must hold a JSON object


def cut(path, keep=-40):
    """Leaves so many bytes of a file, or such a fraction of them."""
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rewrite(change):
    """Tensors of the weights changed by a function of the dict."""

    def act(path):
        from safetensors.numpy import load_file, save_file

        tensors = load_file(path)
        save_file({**tensors, **change(tensors)}, path)

    return act


def index(text):
    return lambda path: (path.parent / hf.INDEX).write_text(text)


def text(name, words):
    return lambda path: (path.parent / name).write_text(words)


def pickled(path):
    path.rename(path.parent / "elsewhere")
    (path.parent / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n(S'touch run'\ntR.")


NORM = "model.norm.weight"
FILES = {  # what is done to the folder, given the path of its weights -> words of the sentence
    "no weights": (pathlib.Path.unlink, "model.safetensors does not exist"),
    "pickled weights": (pickled, "model.safetensors does not exist; weights are read from safetensors files"),
    **{f"{keep} of the weights": (functools.partial(cut, keep=keep), "model.safetensors is damaged") for keep in (0, 7, 100, 0.5, -3, -40)},
    "weights are a text": (lambda path: path.write_text("version https://git-lfs"), "model.safetensors is damaged"),
    "integers": (rewrite(lambda t: {NORM: t[NORM].astype(np.int8)}), f"tensor {NORM} has dtype I8; supported are F32"),
    "doubles": (rewrite(lambda t: {NORM: t[NORM].astype(np.float64)}), f"tensor {NORM} has dtype F64"),
    "a tensor too many": (rewrite(lambda t: {"model.layers.0.extra": t[NORM]}), "has tensor model.layers.0.extra"),
    "index is empty": (index("{}"), "has no weight_map from tensors to names of files"),
    "index has a list": (index('{"weight_map": []}'), "has no weight_map from"),
    "index has a number": (index('{"weight_map": {"a": 3}}'), "has no weight_map from"),
    "index leads elsewhere": (index('{"weight_map": {"a": "../../x.safetensors"}}'), "has no weight_map from"),
    "a missing shard": (index('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'), "model-00002-of-00002.safetensors d"),
    "no tokeniser": (lambda path: None, "holds no tokenizer"),
    "another tokeniser": (text("tokenizer.model", "nonsense"), "tokenizer.model' cannot be used"),
    "tokenizer.json": (text("tokenizer.json", "{}"), "cannot be used: tokenizer.json cannot be read"),
}  # fmt: skip
TOKENIZERS = {  # tokenizer_config.json -> words of the sentence
    **{data: "tokenizer_config.json " for data in TEXTS},
    "{}": "names no eos_token that the tokenizer knows",
    '{"eos_token": "<end>"}': "names no eos_token that the tokenizer knows",
    '{"eos_token": 1}': "tokenizer_config.json has eos_token = 1; it must be a string",
    '{"eos_token": "<eos>", "add_bos_token": true}': "add_bos_token = true, but no bos_token",
}
TEMPLATES = {  # template -> words of the sentence
    "{% for m in messages %}": "does not compile: line 1",
    "{{ raise_exception('no system turn') }}": "no system turn",
    "{{ 1 / 0 }}": "division by zero",
    "{{ messages[7].content.x }}": "no element 7",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% for i in range(10 ** 9) %}x{% endfor %}": "Range too big",
    "{% include '/etc/passwd' %}": "no loader",
    "{% import 'os' as os %}{{ os.getcwd() }}": "no loader",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "unsafe",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}": "unsafe",
    "{{ strftime_now.__globals__['os'] }}": "unsafe",
    "{{ raise_exception.__code__.co_consts }}": "unsafe",
    "{{ '{0.__class__.__mro__}'.format('') }}": "unsafe",
    "{{ messages.append(1) }}": "unsafe",
    "{{ messages[0].update(role='x') }}": "unsafe",
    "{{ open('/etc/passwd').read() }}": "'open' is undefined",
    "{{ self.__init__.__globals__ }}": "unsafe",
}


@pytest.fixture
def folder(tmp_path):
    """A folder that a test may damage; a module that must never be run lies in it."""
    copy = shutil.copytree(SOURCE, tmp_path / "model")
    (copy / "modeling_evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    change(copy / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Model"})
    yield copy
    assert not (tmp_path / "run").exists(), "code of the folder was executed"


def test_the_good_folder_loads(folder):
    assert hf.load(folder)[1]["params"]


@pytest.mark.parametrize(("key", "value", "words"), CASES, ids=lambda x: repr(x)[:30])
def test_values_of_config_json(key, value, words, folder):
    change(folder / "config.json", **{key: value})
    if key == "rope_theta":  # rope_parameters go before it
        change(folder / "config.json", rope_parameters=None)
    if key == "max_window_layers":
        change(folder / "config.json", use_sliding_window=True)
    line = refused(lambda: load_policy(folder))
    assert words in line and str(folder) in line


@pytest.mark.parametrize("data", TEXTS, ids=lambda x: repr(x)[:20])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", hf.INDEX])
def test_files_that_hold_no_json_object(name, data, folder):
    (folder / name).write_bytes(data)
    line = refused(lambda: (hf.end_ids(folder, 1), load_policy(folder)))
    assert str(folder / name) in line and ("not valid JSON" in line or "it must be an object" in line)


@pytest.mark.parametrize("what", FILES)
def test_damaged_folders(what, folder):
    act, words = FILES[what]
    act(folder / "model.safetensors")
    line = refused(lambda: load_policy(folder))
    assert words in line and str(folder) in line


@pytest.mark.parametrize("values", TOKENIZERS, ids=lambda x: repr(x)[:30])
def test_tokenisers_without_what_they_need(values, folder):
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<eos>": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
    model.save(str(folder / "tokenizer.json"))
    data = values if isinstance(values, bytes) else values.encode()
    (folder / "tokenizer_config.json").write_bytes(data)
    line = refused(lambda: load_policy(folder))
    assert TOKENIZERS[values] in line and str(folder) in line
    assert data not in TEXTS or "not valid JSON" in line or "it must be an object" in line


@pytest.mark.parametrize("data", TEXTS, ids=lambda x: repr(x)[:20])
def test_templates_in_damaged_json(data, tmp_path):
    (tmp_path / "tokenizer_config.json").write_bytes(data)
    assert str(tmp_path / "tokenizer_config.json") in refused(lambda: chat.find_template(tmp_path))


@pytest.mark.parametrize("source", TEMPLATES)
def test_templates_that_fail_or_reach_for_the_machine(source, tmp_path):
    (tmp_path / "t.jinja").write_text(source)
    line = refused(lambda: chat.renderer(tmp_path / "t.jinja").prompt([{"role": "user", "content": "x"}]))
    assert TEMPLATES[source] in line and "template" in line


def test_a_filter_finds_no_way_out_either():
    source = "[{{ ''|attr('__class__') }}{{ [raise_exception]|map(attribute='__globals__')|list }}]"
    assert chat.apply_chat_template(chat.ChatTemplate(source, {}), []) == "[[Undefined]]"


def test_templates_that_are_no_text(tmp_path):
    (tmp_path / "t.jinja").write_bytes(b"\xff\xfe{{")
    assert "t.jinja' is not UTF-8 text" in refused(lambda: chat.load_template(tmp_path / "t.jinja"))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 3}')
    assert "chat_template = 3; it must be a string" in refused(lambda: chat.load_template(tmp_path))


@pytest.mark.parametrize("value", ["</s>", "x", [1, "x"], 1.5, {"a": 1}], ids=repr)
def test_ends_that_are_no_tokens(value, folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    line = refused(lambda: hf.end_ids(folder, 1))
    assert f"generation_config.json has eos_token_id = {value!r}; it must be" in line


WORDS = ["the red fox runs", "a blue bird sings well", "fox and bird"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return hf_model.write(tmp_path_factory.mktemp("hf") / "model", hf_model.GEMMA2, WORDS, kind="bpe")


def test_a_classifier_that_is_no_reward_model_and_a_template_that_refuses(policy, tmp_path):
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    line = refused(lambda: classifier_reward(f"hf:{policy}", mesh))
    assert f"{policy} is a classifier of 0 labels; a reward model is one of a single label" in line
    good = hf_model.write(tmp_path / "reward", hf_model.GEMMA2, WORDS, kind="bpe", reward_head=True)
    (good / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    reward = classifier_reward(f"hf:{good}", mesh)
    line = refused(lambda: reward(["the red"], ["fox"]))
    assert f"reward 'hf:{good}', prompt 'the red': " in line and "roles must alternate" in line


def test_missing_weights_are_said_before_anything_is_trained(policy, tmp_path):
    broken = shutil.copytree(policy, tmp_path / "broken")
    cut(broken / "model.safetensors")
    for keys, words in (
        ({"model__path": str(broken)}, f"config.model.path: {broken}"),
        ({"model__path": str(policy), "judge": f"hf:{policy}"}, f"config.judge: {policy} is a classifier of 0"),
    ):
        config = resolved(tmp_path / "run", sft__steps=0, **keys)
        assert words in refused(lambda config=config: experiment.open_experiment(config))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *((data, "adapter_config.json ") for data in TEXTS),
        ({"r": 0}, "adapter_config.json has r = 0; it must be a positive whole number"),
        ({"lora_alpha": "x"}, "adapter_config.json has lora_alpha = 'x'"),
        ({"base_model_name_or_path": "nowhere/model"}, "base_model_name_or_path = 'nowhere/model', which is no"),
        ({"use_dora": True}, "use_dora = True"),
        (None, "adapter_model.safetensors is damaged"),
    ],
    ids=lambda x: repr(x)[:40],
)
def test_damaged_adapters(damage, words, policy, tmp_path):
    config, _ = hf.load(policy)
    lora.save(tmp_path, config, lora.init(config, jax.random.key(0), 2, ("q",))["lora"], policy)
    if damage is None:
        cut(tmp_path / lora.WEIGHTS_FILE)
    elif isinstance(damage, bytes):
        (tmp_path / lora.CONFIG_FILE).write_bytes(damage)
    else:
        change(tmp_path / lora.CONFIG_FILE, **damage)
    line = refused(lambda: load_policy(tmp_path))
    assert words in line and str(tmp_path) in line


def test_prompts_of_any_script_and_length_are_answered(policy):
    loaded = load_policy(policy)
    prompts = ["🙂🙃", "漢字", "e\u0301\u200d", "\x00\x1f", "fox " * 150]
    texts = loaded.generate(prompts, n=2, max_tokens=3)
    assert [len(row) for row in texts] == [2] * 5
    assert "prompts is empty" in refused(lambda: loaded.generate([]))
    assert "prompts is one string" in refused(lambda: loaded.generate("fox"))

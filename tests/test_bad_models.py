"""Damaged, incomplete and unsupported folders of models, tokenisers and templates: one sentence that names file and key."""

import json
import pathlib
import shutil

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
CONFIGS = {  # what is changed in config.json -> words of the sentence
    "hidden_size": (None, "config.json has hidden_size = None; it must be a positive whole number"),
    "hidden_size ": ("12", "config.json has hidden_size = '12'"),
    "num_attention_heads": (0, "config.json has num_attention_heads = 0"),
    "num_key_value_heads": (5, "num_kv_heads is 5; it must divide"),
    "head_dim": (7, "head_dim is 7; rotary positions need an even number"),
    "vocab_size": (True, "config.json has vocab_size = True"),
    "rms_norm_eps": ("x", "config.json has rms_norm_eps = 'x'; it must be a positive number"),
    "intermediate_size": (11, "tensor model.layers.0.mlp.down_proj.weight has shape (12, 10); config.json calls for (12, 11"),
    "num_hidden_layers": (3, "has no tensor model.layers.2"),
    "num_hidden_layers ": (1, "has tensor model.layers.1"),
    "model_type": ("mamba", "model_type 'mamba'; supported are gemma2"),
    "hidden_act": ("relu", "activation 'relu'"),
    "attention_bias": (True, "attention_bias = True, which is not supported for llama"),
    "mlp_bias": (True, "mlp_bias = True"),
    "is_causal": (False, "is_causal = False"),
    "use_bidirectional_attention": (True, "use_bidirectional_attention = True"),
    "quantization_config": ({"bits": 4}, "quantization_config = {'bits': 4}"),
    "layer_types": (["full_attention"], "layer_types = ['full_attention']; it must list the 2 layers"),
    "layer_types ": (["full_attention", "chunked_attention"], "layer_types ['chunked_attention']; supported are"),
    "layer_types  ": (["full_attention", "sliding_attention"], "sliding_window = None; it must be a positive whole"),
    "rope_parameters": ("yarn", "rope_parameters = 'yarn'; it must be an object"),
    "rope_parameters ": ({"rope_type": "yarn", "factor": 4.0}, "rope type 'yarn'; supported are default, linear and llama3"),
    "rope_parameters  ": ({"rope_type": "linear"}, "config.json has factor = None; it must be a positive number"),
    "rope_parameters   ": ({**LLAMA3, "low_freq_factor": 0}, "low_freq_factor = 0; it must be a positive number"),
    "rope_parameters    ": (LLAMA3, "original_max_position_embeddings = None"),
    "rope_parameters     ": ({"rope_theta": "big"}, "rope_theta = 'big'"),
    "rope_parameters      ": ({"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
}  # fmt: skip


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


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


NORM = "model.norm.weight"
FILES = {  # what is done to the folder, given the path of its weights -> words of the sentence
    "config.json is no JSON": (text("config.json", "{"), "config.json is not valid JSON"),
    "config.json is a list": (text("config.json", "[]"), "holds a JSON list; it must be an object"),
    "no weights": (pathlib.Path.unlink, "model.safetensors does not exist"),
    "weights cut short": (cut, "model.safetensors is damaged"),
    "weights are a text": (lambda path: path.write_text("version https://git-lfs"), "model.safetensors is damaged"),
    "weights are empty": (lambda path: path.write_bytes(b""), "model.safetensors is damaged"),
    "integers": (rewrite(lambda t: {NORM: t[NORM].astype(np.int8)}), f"tensor {NORM} has dtype I8; supported are F32"),
    "doubles": (rewrite(lambda t: {NORM: t[NORM].astype(np.float64)}), f"tensor {NORM} has dtype F64"),
    "a tensor too many": (rewrite(lambda t: {"model.layers.0.extra": t[NORM]}), "has tensor model.layers.0.extra"),
    "index is no JSON": (index("{"), "index.json is not valid JSON"),
    "index is empty": (index("{}"), "has no weight_map from tensors to names of files"),
    "index leads elsewhere": (index('{"weight_map": {"a": "../../x.safetensors"}}'), "has no weight_map from"),
    "a missing shard": (index('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'), "model-00002-of-00002.safetensors d"),
    "no tokeniser": (lambda path: None, "holds no tokenizer"),
    "another tokeniser": (text("tokenizer.model", "nonsense"), "tokenizer.model' cannot be used"),
    "tokenizer.json": (text("tokenizer.json", "{}"), "cannot be used: tokenizer.json cannot be read"),
}  # fmt: skip
TOKENIZERS = {  # tokenizer_config.json -> words of the sentence
    "{": "tokenizer_config.json is not valid JSON",
    "[1]": "tokenizer_config.json is not valid: it holds no JSON object but a list",
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
    return shutil.copytree(SOURCE, tmp_path / "model")


@pytest.mark.parametrize("key", CONFIGS)
def test_configs_that_cannot_be_honoured(key, folder):
    value, words = CONFIGS[key]
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key.strip(): value}))
    line = refused(lambda: load_policy(folder))
    assert words in line and str(folder) in line


@pytest.mark.parametrize("what", FILES)
def test_damaged_folders(what, folder):
    act, words = FILES[what]
    act(folder / "model.safetensors")
    line = refused(lambda: load_policy(folder))
    assert words in line and str(folder) in line


@pytest.mark.parametrize("values", TOKENIZERS)
def test_tokenisers_without_what_they_need(values, folder):
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<eos>": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(values)
    line = refused(lambda: load_policy(folder))
    assert TOKENIZERS[values] in line and str(folder) in line


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


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "generation_config.json is not valid JSON"), ('{"eos_token_id": "x"}', "eos_token_id = 'x'; it must be")],
)
def test_ends_that_are_no_tokens(text, words, folder):
    (folder / "generation_config.json").write_text(text)
    assert words in refused(lambda: hf.end_ids(folder, 1))


TEXTS = ["the red fox runs", "a blue bird sings well", "fox and bird"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return hf_model.write(tmp_path_factory.mktemp("hf") / "model", hf_model.GEMMA2, TEXTS, kind="bpe")


def test_a_classifier_that_is_no_reward_model_and_a_template_that_refuses(policy, tmp_path):
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    line = refused(lambda: classifier_reward(f"hf:{policy}", mesh))
    assert f"{policy} is a classifier of 0 labels; a reward model is one of a single label" in line
    good = hf_model.write(tmp_path / "reward", hf_model.GEMMA2, TEXTS, kind="bpe", reward_head=True)
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
    ("change", "words"),
    [
        ("{", "adapter_config.json is not valid JSON"),
        ({"r": 0}, "adapter_config.json has r = 0; it must be a positive whole number"),
        ({"lora_alpha": "x"}, "adapter_config.json has lora_alpha = 'x'"),
        ({"base_model_name_or_path": "nowhere/model"}, "base_model_name_or_path = 'nowhere/model', which is no"),
        ({"use_dora": True}, "use_dora = True"),
        (None, "adapter_model.safetensors is damaged"),
    ],
    ids=repr,
)
def test_damaged_adapters(change, words, policy, tmp_path):
    import jax

    config, _ = hf.load(policy)
    lora.save(tmp_path, config, lora.init(config, jax.random.key(0), 2, ("q",))["lora"], policy)
    file = tmp_path / lora.CONFIG_FILE
    if change is None:
        cut(tmp_path / lora.WEIGHTS_FILE)
    else:
        file.write_text(change if isinstance(change, str) else json.dumps({**json.loads(file.read_text()), **change}))
    line = refused(lambda: load_policy(tmp_path))
    assert words in line and str(tmp_path) in line


def test_prompts_of_any_script_and_length_are_answered(policy):
    loaded = load_policy(policy)
    prompts = ["🙂🙃", "漢字", "e\u0301\u200d", "\x00\x1f", "fox " * 150]
    texts = loaded.generate(prompts, n=2, max_tokens=3)
    assert [len(row) for row in texts] == [2] * 5
    assert "prompts is empty" in refused(lambda: loaded.generate([]))
    assert "prompts is one string" in refused(lambda: loaded.generate("fox"))

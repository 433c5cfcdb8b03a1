"""Hugging Face folders against logits that `transformers` computed (made by tests/peers/make_reference.py)."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax.models import transformer

pytest.importorskip("safetensors")

from infalign_jax.models import hf, hf_save

_ROOT = Path(__file__).parent / "hf_reference"
_FAMILIES = sorted(path.name for path in _ROOT.iterdir())


@pytest.mark.parametrize("name", _FAMILIES)
def test_logits_are_those_of_transformers_and_saving_restores_every_byte(name, tmp_path):
    config, variables = hf.load(_ROOT / name)
    reference = np.load(_ROOT / name / "logits.npz")
    tokens = reference["tokens"]

    @jax.jit
    def logits(variables):
        hidden = transformer.forward(config, variables, tokens, jnp.full(len(tokens), tokens.shape[1]))
        return transformer.unembed(config, variables, hidden)

    scale = np.abs(reference["logits"]).max()
    np.testing.assert_allclose(logits(variables), reference["logits"], atol=2e-4 * scale)

    hf_save.save(tmp_path, config, variables, _ROOT / name)
    from safetensors.numpy import load_file

    one, two = (load_file(folder / "model.safetensors") for folder in (_ROOT / name, tmp_path))
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])


@pytest.mark.parametrize("shard_bytes", [1, 1500, 6000])
def test_weights_are_cut_into_files_of_a_given_size(shard_bytes, tmp_path):
    config, variables = hf.load(_ROOT / "gemma3")
    hf_save.save(tmp_path, config, variables, _ROOT / "gemma3", shard_bytes=shard_bytes)
    from safetensors.numpy import load_file

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = {path.name: load_file(path) for path in tmp_path.glob("*.safetensors")}
    whole = load_file(_ROOT / "gemma3" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    assert index["weight_map"].keys() == whole.keys() and set(index["weight_map"].values()) == files.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(files[index["weight_map"][name]][name], array)
    sizes = [sum(array.nbytes for array in file.values()) for file in files.values()]
    assert all(size <= shard_bytes or len(file) == 1 for size, file in zip(sizes, files.values(), strict=True))
    assert sorted(files) == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    jax.tree.map(np.testing.assert_array_equal, variables, hf.load(tmp_path)[1])

    hf_save.save(tmp_path, config, variables, _ROOT / "gemma3")  # one file again, and nothing of the others
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


@pytest.mark.slow
def test_two_hosts_write_their_own_files_of_parameters_cut_over_both(tmp_path):
    """Each process holds half of every parameter; together they write what one writes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    program = [
        sys.executable,
        str(Path(__file__).parent / "two_hosts.py"),
        str(port),
        str(_ROOT / "llama"),
        str(tmp_path),
    ]
    hosts = [subprocess.Popen([*program, str(i)], stdout=subprocess.PIPE, text=True) for i in range(2)]
    written = [json.loads(host.communicate(timeout=240)[0].splitlines()[-1]) for host in hosts]
    assert all(host.returncode == 0 for host in hosts)
    assert sorted(written[0] + written[1]) == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert min(map(len, written)) >= 2
    jax.tree.map(np.testing.assert_array_equal, hf.load(_ROOT / "llama")[1], hf.load(tmp_path)[1])


def _broken(tmp_path, **changes):
    folder = shutil.copytree(_ROOT / "llama", tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'; supported are gemma2"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"intermediate_size": 11}, "has shape"),
        ({"num_hidden_layers": 3}, "has no tensor model.layers.2"),
        ({"num_hidden_layers": 1}, "has tensor model.layers.1"),
    ],
)
def test_what_cannot_be_honoured_is_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        hf.load(_broken(tmp_path, **changes))


def test_saving_refuses_what_would_not_load_again(tmp_path):
    config, variables = hf.load(_ROOT / "llama")
    with pytest.raises(ValueError, match="another architecture"):
        hf_save.save(tmp_path, config, variables, _ROOT / "qwen3")
    with pytest.raises(ValueError, match="merge them"):
        hf_save.save(tmp_path, config, {**variables, "lora": {}}, _ROOT / "llama")

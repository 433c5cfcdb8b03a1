"""Hugging Face folders against logits that `transformers` computed (made by tests/peers/make_reference.py)."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax.models import transformer

pytest.importorskip("safetensors")

from infalign_jax.models import hf

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

    hf.save(tmp_path, config, variables, _ROOT / name)
    from safetensors.numpy import load_file

    one, two = (load_file(folder / "model.safetensors") for folder in (_ROOT / name, tmp_path))
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])


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
        hf.save(tmp_path, config, variables, _ROOT / "qwen3")
    with pytest.raises(ValueError, match="merge them"):
        hf.save(tmp_path, config, {**variables, "lora": {}}, _ROOT / "llama")

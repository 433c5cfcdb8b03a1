"""The Pallas kernel, interpreted, against XLA's attention: values and gradients, whatever sees whom."""

import importlib.util
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax import main
from infalign_jax.models import attention, splash, transformer
from infalign_jax.models.config import TransformerConfig
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent

_NO_MESH = jax.sharding.get_abstract_mesh()
_LENGTHS = jnp.array([130, 1])
_B, _S, _C, _H = 2, 150, 140, 8  # more than one block of 128 slots of each, and slots left over


def _by_xla(q, k, v, rollouts, window, cap):
    """The two-part attention of `attention`, on the axis that the kernel takes."""
    valid, last = attention.valid_slots(_LENGTHS, _S), lambda x: jnp.moveaxis(x, -3, -1)
    prompt_kv = last(k[:, :_S]), last(v[:, :_S])
    out = attention.attend_prompt(q[:, :_S], *prompt_kv, valid, window, cap)
    if not rollouts:
        return out
    q_own, k_own, v_own = (x[:, _S:].reshape(_B, rollouts, _C, *x.shape[2:]) for x in (q, k, v))
    own_kv = last(k_own), jnp.swapaxes(v_own, -3, -2)
    own = attention.attend_completion(q_own, prompt_kv, own_kv, valid, 0, window, cap)
    return jnp.concatenate([out, own.reshape(_B, rollouts * _C, *q.shape[2:])], axis=1)


@pytest.mark.parametrize(
    ("rollouts", "window", "cap", "kv_heads", "each"),
    [
        pytest.param(2, 70, 3.0, 1, 3, id="window, cap, one KV head"),
        pytest.param(2, None, None, 2, 2, id="grouped heads", marks=pytest.mark.slow),
        pytest.param(0, 129, None, 2, 1, id="prompts alone", marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_are_those_of_xla(rollouts, window, cap, kv_heads, each):
    keys, X = jax.random.split(jax.random.key(0), 4), _S + rollouts * _C
    q = 2.0 * jax.random.normal(keys[0], (_B, X, kv_heads, each, _H))
    k, v = (jax.random.normal(key, (_B, X, kv_heads, _H)) for key in keys[1:3])
    valid = attention.valid_slots(_LENGTHS, _S)
    read = jnp.concatenate([valid, jnp.ones((_B, rollouts * _C), bool)], axis=1)[..., None, None, None]
    weights = jax.random.normal(keys[3], q.shape) * read  # nobody reads the outputs of padding

    def kernel(q, k, v):
        return splash.attend(q, k, v, valid, rollouts, window, cap, _NO_MESH, interpret=True)

    def both(function):
        def loss(*arrays):
            out = function(*arrays)
            return (out * weights).sum(), out * read

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        return out, *gradients

    found, expected = both(kernel), both(lambda *arrays: _by_xla(*arrays, rollouts, window, cap))
    for one, two in zip(found, expected, strict=True):
        assert float(jnp.abs(two).max()) > 0.1
        np.testing.assert_allclose(one, two, atol=1e-5 * float(jnp.abs(two).max()))


def test_blocks_that_nobody_sees_are_left_out():
    """Of the 12 x 12 blocks of a prompt and 4 rollouts, causality and the window of 200 leave those the mask has tokens in."""
    mask = splash.Mask(512, 4, 256, 200)
    whole = mask[slice(0, 1536), slice(0, 1536)]
    slots = [*range(512), *(512 + c for _ in range(4) for c in range(256))]
    rollout = [-1] * 512 + [r for r in range(4) for _ in range(256)]
    for i, j in np.random.default_rng(0).integers(0, 1536, (2000, 2)):
        seen = 0 <= slots[i] - slots[j] < 200 and (rollout[j] == -1 or rollout[j] == rollout[i])
        assert whole[i, j] == seen
    blocks = whole.reshape(12, 128, 12, 128).any((1, 3)).sum()
    # The prompt: 4 on the diagonal, 3 + 2 below. A rollout: 2 and 1 of its own; of the prompt 2 and 1.
    assert blocks == 4 + 3 + 2 + 4 * (3 + 3)


def test_a_model_with_both_kinds_of_layer_says_the_same():
    config = TransformerConfig(
        vocab_size=29, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=20, window=3,
        pattern=("local", "global"), attention_soft_cap=2.0, remat="layer",
    )  # fmt: skip
    variables = transformer.init(config, jax.random.key(0))
    prompts = jax.random.randint(jax.random.key(1), (2, 7), 0, 29)
    completions = jax.random.randint(jax.random.key(2), (2, 2, 6), 0, 29)
    arrays = prompts, jnp.array([7, 3]), completions
    splashed = config.replace(attention="splash_interpreted")
    shared, prefill = (jax.jit(f, static_argnums=0) for f in (transformer.forward_shared, transformer.prefill))
    np.testing.assert_allclose(shared(splashed, variables, *arrays), shared(config, variables, *arrays), atol=1e-5)
    (hidden, cache), (expected, _) = (prefill(each, variables, *arrays[:2]) for each in (splashed, config))
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    assert [x.shape for x in cache.keys] == [(2, 1, 8, 2), (2, 1, 8, 7)]  # the local layer keeps what it can see


def test_other_devices_are_refused_in_a_sentence(tmp_path):
    config = tiny.get_config()
    config.model.attention = "splash"
    with pytest.raises(ValueError, match="'splash', a kernel for TPUs, and the devices here are cpu; choose 'xla'"):
        main.run("sft", config, tmp_path)


PROGRAM = """
import sys, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from infalign_jax.models import splash
from infalign_jax.scale import chips
from infalign_jax.training import mesh as meshes
chips.pretend("v5e")
mesh = meshes.make_mesh(dict(data=1, fsdp=2, tensor=2), chips.devices("v5e:2x2"))
B, S, R, C = 4, 200, 2, 100
for kv_heads, each, width, dtype in ((2, 2, 64, "bfloat16"), (1, 2, 256, "float32"), (1, 3, 80, "bfloat16")):
    place = lambda shape, d=dtype: jax.ShapeDtypeStruct(shape, d, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
    def loss(q, k, v, valid):
        own = jax.typeof(q).sharding.mesh
        return splash.attend(q, k, v, valid, R, 90, 50.0, own).astype(jnp.float32).sum()
    q, kv = place((B, S + R * C, kv_heads, each, width)), place((B, S + R * C, kv_heads, width))
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, kv, kv, place((B, S), bool)).compile().as_text()
    assert all(f"splash_mha_{phase}_segmented" in text for phase in ("fwd", "dq", "dkv")), text[:2000]
    print("compiled")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: install infalign-jax[tpu]")
def test_the_kernel_compiles_for_a_tpu_with_any_width_of_head():
    """On a mesh whose `tensor` splits the KV heads, then the queries of one, then nothing."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert done.stdout.split() == ["compiled"] * 3, done.stderr[-2000:]

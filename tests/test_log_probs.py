"""The chunked head against the dense one: values, gradients and the memory it is there to save."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax.models import transformer
from infalign_jax.models.config import TransformerConfig
from infalign_jax.sampling import log_probs

_CONFIG = TransformerConfig(
    vocab_size=50, num_layers=1, embed_dim=12, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, logit_soft_cap=2.0
)
_TARGETS = jax.random.randint(jax.random.key(1), (3, 2, 7), 0, 50)
_HIDDEN, _OTHER = jax.random.normal(jax.random.key(2), (2, 3, 2, 7, 12))
_WEIGHTS = jax.random.normal(jax.random.key(3), (4, 3, 2, 7))


def _dense(config, policy, reference, hidden, other, targets):
    """Straight from the definitions, on the full [..., T, V]."""
    p = jax.nn.softmax(transformer.unembed(config, policy, hidden))
    q = jax.nn.softmax(transformer.unembed(config, reference, other))
    chosen = jax.nn.one_hot(targets, config.vocab_size)
    return (
        jnp.log((p * chosen).sum(-1)), jnp.log((q * chosen).sum(-1)), (p * jnp.log(p / q)).sum(-1), -(p * jnp.log(p)).sum(-1)
    )  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
def test_chunked_equals_dense_with_gradients(chunk, tied):
    config = _CONFIG.replace(tied_embeddings=tied)
    policy, reference = (transformer.init(config, jax.random.key(i)) for i in (4, 5))

    def weighted(function, policy, hidden, reference, other):
        outputs = function(config, policy, reference, hidden, other, _TARGETS)
        return sum((w * x).sum() for w, x in zip(_WEIGHTS, outputs, strict=True)), outputs

    results = []
    for function in (functools.partial(log_probs.token_statistics, chunk=chunk), _dense):
        gradient = jax.jit(jax.value_and_grad(functools.partial(weighted, function), (0, 1, 2, 3), has_aux=True))
        results.append(gradient(policy, _HIDDEN, reference, _OTHER))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *results)

    def alone(policy, hidden):
        return (_WEIGHTS[0] * log_probs.token_log_probs(config, policy, hidden, _TARGETS, chunk=chunk)).sum()

    def dense(policy, hidden):
        return (_WEIGHTS[0] * _dense(config, policy, policy, hidden, hidden, _TARGETS)[0]).sum()

    one, two = (jax.value_and_grad(f, (0, 1))(policy, _HIDDEN) for f in (alone, dense))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one, two)


def test_kl_is_zero_for_equal_models_and_entropy_at_most_log_v():
    variables = transformer.init(_CONFIG, jax.random.key(4))
    _, _, kl, entropy = log_probs.token_statistics(_CONFIG, variables, variables, _HIDDEN, _HIDDEN, _TARGETS, chunk=2)
    np.testing.assert_array_equal(kl, 0)
    assert (entropy > 0).all() and (entropy <= np.log(50) + 1e-5).all()


def test_memory_at_a_large_vocabulary():
    """B=16, T=128, V=262,144, D=256: at most 150 MiB of temporaries forward and 700 MiB for loss and gradient."""
    config = _CONFIG.replace(vocab_size=262_144, embed_dim=256)
    params = {"embed": {"embedding": jax.ShapeDtypeStruct((262_144, 256), jnp.float32)}}
    hidden = jax.ShapeDtypeStruct((16, 128, 256), jnp.float32)
    targets = jax.ShapeDtypeStruct((16, 128), jnp.int32)

    def loss(variables, hidden, targets, trained=True):
        return log_probs.token_log_probs(config, variables, hidden, targets, trained=trained).mean()

    def mebibytes(function):
        compiled = jax.jit(function).lower({"params": params}, hidden, targets).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    assert mebibytes(functools.partial(loss, trained=False)) <= 150
    assert mebibytes(jax.value_and_grad(loss, (0, 1))) <= 700


def test_chunk_sizes():
    assert log_probs.chunk_slots(16, 128, 262_144) == 2
    assert log_probs.chunk_slots(4096, 128, 262_144) == 1
    assert log_probs.chunk_slots(8, 64, 100) == 64
    wide, variables = _CONFIG.replace(vocab_size=262_144), transformer.init(_CONFIG, jax.random.key(0))
    targets = jnp.zeros((16, 128), jnp.int32)
    assert [log_probs._chunk(wide, variables, targets, None, trained) for trained in (False, True)] == [2, 8]
    with pytest.raises(ValueError, match="chunk is 0"):
        log_probs.token_log_probs(_CONFIG, transformer.init(_CONFIG, jax.random.key(0)), _HIDDEN, _TARGETS, chunk=0)

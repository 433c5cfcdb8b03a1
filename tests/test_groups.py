"""Drawing groups of prompts at the same time: the same rollouts as one call, and errors that are not lost."""

import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from infalign_jax.models import transformer
from infalign_jax.models.config import TransformerConfig
from infalign_jax.sampling import retire, sampler
from infalign_jax.stages import experiment
from infalign_jax.stages.groups import in_groups
from tests import tiny
from tests.compilations import Compilations

_CONFIG = TransformerConfig(
    vocab_size=31, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=16
)
_B, _S = 6, 5


def _sample(sampling, count, max_tokens=20):
    variables = transformer.init(_CONFIG, jax.random.key(0))
    tokens_BS = np.random.default_rng(0).integers(2, 31, (_B, _S)).astype(np.int32)

    def draw_group(*arrays):
        return sampling.sample(
            _CONFIG, variables, *arrays, jax.random.key(7), rollouts=3, max_tokens=max_tokens, eos_ids=(1,)
        )

    return in_groups(draw_group, count, tokens_BS, np.arange(1, _B + 1).clip(max=_S), 10 + np.arange(_B))


@pytest.mark.parametrize("sampling", [sampler, retire], ids=["sampler", "retire"])
@pytest.mark.parametrize("count", [2, 4, 100])
def test_groups_draw_what_one_call_draws(sampling, count):
    whole, grouped = _sample(sampling, 1), _sample(sampling, count)
    for name in ("tokens_BRC", "mask_BRC", "ended_BR"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(grouped, name))
    np.testing.assert_allclose(whole.log_probs_BRC, grouped.log_probs_BRC, atol=1e-5)


def test_groups_run_at_the_same_time_and_compile_once():
    meet = threading.Barrier(2, timeout=60)  # broken, an error, unless two threads are here at once

    def met(x_B):
        meet.wait()
        return x_B + 1

    np.testing.assert_array_equal(in_groups(met, 2, np.arange(5)), np.arange(1, 6))
    with Compilations() as seen:
        _sample(sampler, 2, max_tokens=3)
    assert seen.names["_sample"] == 1


def test_an_error_in_one_group_is_raised():
    def fail(x_B):
        if 3 in x_B:
            raise ValueError("prompt 3 is empty")
        return x_B

    with pytest.raises(ValueError, match="prompt 3 is empty"):
        in_groups(fail, 2, np.arange(4))


def test_groups_are_refused_where_devices_share_the_prompts(monkeypatch, tmp_path):
    monkeypatch.setattr(experiment.meshes, "make_mesh", lambda sizes: SimpleNamespace(size=8))
    config = tiny.get_config()
    with config.unlocked():
        config.workdir, config.sampling.at_once = str(tmp_path), 2
    with pytest.raises(ValueError, match=r"config\.sampling\.at_once is 2; it must be 1 where, as here, 8 devices"):
        experiment.open_experiment(config)

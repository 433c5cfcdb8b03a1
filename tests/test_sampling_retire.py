"""Rollouts whose batch shrinks as they end, and stop strings: the tokens are those of the plain sampler."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax.data.tokenizer import train_sentencepiece
from infalign_jax.models import transformer
from infalign_jax.models.config import TransformerConfig
from infalign_jax.sampling import retire, sampler, stop

_CONFIG = TransformerConfig(
    vocab_size=40, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=16, window=9,
    pattern=("local", "global"),
)  # fmt: skip
_OPTIONS = dict(rollouts=4, max_tokens=40, eos_ids=(3, 5), pad_id=0, temperature=0.9)
_LETTERS = "?....\n\nabHum: nxyz,;Assistant-0123456789"  # id -> what it says, one character each


@functools.cache
def _draw(function, **changes):
    variables = transformer.init(_CONFIG, jax.random.key(0))
    prompts = jax.random.randint(jax.random.key(2), (5, 12), 0, 40)
    lengths = jnp.array([12, 2, 7, 12, 1])
    key, ids = jax.random.key(4), jnp.arange(5)
    drawn = function(_CONFIG, variables, prompts, lengths, ids, key, **_OPTIONS | changes)
    return jax.tree.map(np.asarray, drawn)


def _decode(ids):
    return "".join(_LETTERS[i] for i in ids)


def _same(one, two):
    for name in ("tokens_BRC", "mask_BRC", "ended_BR"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_allclose(one.log_probs_BRC, two.log_probs_BRC, atol=2e-5)
    np.testing.assert_allclose(one.sampling_log_probs_BRC, two.sampling_log_probs_BRC, atol=2e-5)


@pytest.mark.parametrize("rollouts", [4, 1])
def test_retiring_changes_no_token(rollouts, monkeypatch):
    """Rollouts of every prompt are let go of, or prompts where each has one."""
    sizes, keep = [], retire._keep
    monkeypatch.setattr(retire, "_keep", lambda *args: sizes.append([np.shape(x) for x in args[2:]]) or keep(*args))
    monkeypatch.setattr(retire, "FEW", 4)
    plain = _draw(sampler.sample, rollouts=rollouts)
    _same(_draw(retire.sample, rollouts=rollouts), plain)
    lengths = plain.mask_BRC.sum(-1)
    assert sizes and (lengths <= 16).any() and (lengths == 40).any() and plain.ended_BR.any()  # else nothing was tested
    assert all((prompts == ()) == (rollouts > 1) for prompts, _ in sizes)


def test_survivors_are_all_there():
    rng = np.random.default_rng(0)
    for rate in (0.02, 0.1, 0.3, 0.6, 1.0):
        live = rng.random((6, 10)) < rate
        live[3, 7] = True
        prompts, rollouts = retire.survivors(live)
        assert live[prompts[:, None], rollouts].sum() == live.sum()
        assert prompts.tolist() == [0, 1, 2, 3, 4, 5] and rollouts.shape[1] in (10, 5, 3, 2, 1)
        assert rollouts.shape[1] == 1 or -(-rollouts.shape[1] // 2) < live.sum(1).max()
        assert all(len(set(row)) == len(row) for row in rollouts)
    one = np.eye(6, dtype=bool)[:, 2:3]
    prompts, rollouts = retire.survivors(one)
    assert prompts.tolist() == [2] and rollouts.shape == (1, 1)
    assert retire.survivors(one, one_device=False)[1].shape == (6, 1)


@pytest.mark.parametrize("strings", [("ab",), ("m", "H")], ids=repr)
def test_a_rollout_ends_with_the_token_that_completes_a_stop_string(strings):
    """Against cutting what the plain sampler drew, token by token."""
    plain = _draw(sampler.sample)
    found = _draw(functools.partial(retire.sample, stop=stop.stopper(_decode, strings)))
    cut = 0
    for place in np.ndindex(5, 4):
        tokens = plain.tokens_BRC[place][: int(plain.mask_BRC[place].sum())]
        hits = [n for n in range(1, len(tokens) + 1) if any(s in _decode(tokens[:n]) for s in strings)]
        length = hits[0] if hits else len(tokens)
        cut += bool(hits)
        np.testing.assert_array_equal(found.tokens_BRC[place][:length], tokens[:length])
        np.testing.assert_array_equal(found.mask_BRC[place], np.arange(40) < length)
        assert (found.tokens_BRC[place][length:] == 0).all()
        assert found.ended_BR[place] == (bool(hits) or plain.ended_BR[place])
        for name in ("log_probs_BRC", "sampling_log_probs_BRC"):
            expected = np.where(np.arange(40) < length, getattr(plain, name)[place], 0)
            np.testing.assert_allclose(getattr(found, name)[place], expected, atol=2e-5)
    assert cut > (0 if strings == ("ab",) else 5)


def test_stop_strings_are_found_however_a_tokeniser_splits_them():
    """Whole, in bytes, and inside longer pieces."""
    tokenizer = train_sentencepiece(["\n\nHuman: hello hello", "Human: yes"], model_type="bpe", vocab_size=400)
    byte = lambda text: [tokenizer._model.piece_to_id(f"<0x{b:02X}>") for b in text.encode()]  # noqa: E731
    strings = ("\n\nHuman:", "é")
    look = stop.stopper(tokenizer.decode, strings)
    head = tokenizer.encode("hello")
    for tail in (tokenizer.encode("\n\nHuman: y"), byte("\n\nHuman:y"), tokenizer.encode("\n") + byte("\nHuman: y")):
        length = look(head + tail, 0)
        assert strings[0] in tokenizer.decode((head + tail)[:length])
        assert strings[0] not in tokenizer.decode((head + tail)[: length - 1])
        assert look(head + tail, len(head) + 1) == length and look(head + tail, len(head + tail)) is None
        assert stop.cut(tokenizer.decode((head + tail)[:length]), strings) == "hello"
    assert look(head + byte("é"), 0) == len(head) + 2 and look(head, 0) is None
    assert look(head + byte("é")[:1], len(head)) is None
    assert stop.cut("abc", ("c", "bc")) == "a" and stop.cut("abc", ()) == "abc" and stop.stopper(None, ()) is None


@pytest.mark.parametrize("bad", ["", ("a", ""), (3,)])
def test_empty_stop_strings_are_refused(bad):
    with pytest.raises(ValueError, match="stop is"):
        stop.check(bad)


def test_one_string_is_a_stop_string():
    assert stop.check("ab") == ("ab",) and stop.check(["ab", "c"]) == ("ab", "c") and stop.check(()) == ()


@pytest.mark.parametrize(("max_tokens", "fsdp", "expected"), [(40, 1, "retire"), (16, 1, "plain"), (40, 2, "plain")])
def test_stages_let_go_of_rollouts_where_it_pays(max_tokens, fsdp, expected, monkeypatch):
    """Both samplers are given the same arguments, whose tokens are the same (above)."""
    from infalign_jax.stages import experiment

    config = SimpleNamespace(
        seed=1, data=SimpleNamespace(response_tokens=max_tokens), sampling=SimpleNamespace(temperature=0.5, at_once=1),
        model=SimpleNamespace(path=""),
    )  # fmt: skip
    calls = []
    for name, module in (("retire", retire), ("plain", sampler)):
        monkeypatch.setattr(module, "sample", lambda *a, name=name, **o: calls.append((name, a[2:5], o)))
    monkeypatch.setattr(experiment.meshes, "put_batch", lambda mesh, batch: batch)
    mesh = SimpleNamespace(shape={"data": 2, "fsdp": fsdp, "tensor": 1})
    inputs = experiment.Experiment(config, None, None, SimpleNamespace(eos_id=3, pad_id=0), _CONFIG, mesh)
    prompts = experiment.Prompts([], [], np.arange(12).reshape(3, 4), np.array([4, 2, 1]), np.array([7, 8, 9]))
    experiment.draw(inputs, None, prompts, np.array([2, 0]), rollouts=6, purpose="test")
    ((name, (tokens, lengths, ids), options),) = calls
    assert name == expected
    np.testing.assert_array_equal(tokens, [[8, 9, 10, 11], [0, 1, 2, 3]])
    assert lengths.tolist() == [1, 4] and ids.tolist() == [9, 7]
    assert options == dict(rollouts=6, max_tokens=max_tokens, temperature=0.5, eos_ids=(3,), pad_id=0)

"""What the main steps cost, as XLA counts it, and how often they compile: a regression shows here without a clock.

XLA counts a loop's body once, so the model has one layer and two tokens are drawn. COSTS holds what was counted when
it was last looked at; who makes a step cheaper lowers it: `python -m tests.test_costs` prints it anew.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax.core import calibration
from infalign_jax.models import transformer
from infalign_jax.models.config import TransformerConfig
from infalign_jax.sampling import sampler
from infalign_jax.sampling.log_probs import token_log_probs, token_statistics
from infalign_jax.scale import hlo
from infalign_jax.stages import align
from infalign_jax.stages.scores import score_rule
from infalign_jax.training.state import adam, init_state
from tests.compilations import Compilations

B, R, S, C, K = 2, 4, 16, 2, 8
MODEL = TransformerConfig(
    vocab_size=256, num_layers=1, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=128
)
# FLOPs and bytes before XLA optimises, bytes of temporaries after it. The same on jax 0.10.2 and 0.12.0 but for 0.1 %.
COSTS = {
    "sample": (3755706, 2955759, 58112),
    "update": (16024198, 26907480, 427816),
}
ROOM = (1.01, 1.03, 1.10)  # a change may cost so much more; a tenth less than COSTS wants new numbers there
WIDE = MODEL.replace(vocab_size=262_144, embed_dim=256)  # the head of a large vocabulary
WIDE_B, WIDE_T = 16, 128
MIB = 1 << 20


def matmul_flops(prompt_tokens, other_tokens, heads):
    """Two for each weight that a token meets: what a forward pass needs at least, attention left out."""
    inner = MODEL.num_heads * MODEL.head_dim
    attention = 2 * MODEL.embed_dim * (inner + MODEL.num_kv_heads * MODEL.head_dim)
    layer = attention + 3 * MODEL.embed_dim * MODEL.mlp_dim
    return 2 * (layer * (prompt_tokens + other_tokens) + heads * MODEL.embed_dim * MODEL.vocab_size)


FORWARD = matmul_flops(B * S, B * R * (C - 1), B * R * C)
LEAST = {"sample": FORWARD, "update": 4 * FORWARD}  # a backward pass is two forward passes, the reference has one


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def abstract_variables(model):
    return jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))


def sample():
    how = sampler.How(MODEL, R, C, (), 0, (1.0, None, None, None), None)
    return sampler._sample.lower(how, abstract_variables(MODEL), ints(B, S), ints(B), ints(B), jax.random.key(0))


def rule_of_table():
    table_BK = np.sort(np.random.default_rng(0).normal(size=(B, K)), 1).astype(np.float32)
    return table_BK, *score_rule("exponential(10)", table_BK, 1.0)


def make_step():
    optimizer = adam(1e-3, 1.0)
    return optimizer, align.make_step(MODEL, optimizer, target_kl=1.0, kl_rate=lambda step: 0.1)


def update():
    (optimizer, step), variables = make_step(), abstract_variables(MODEL)
    state = jax.eval_shape(lambda variables: init_state(variables, optimizer, 1.0), variables)
    batch = {
        "prompt_tokens": ints(B, S), "prompt_lengths": ints(B), "tokens": ints(B, R, C), "mask": floats(B, R, C),
        "rewards": floats(B, R), "ended": floats(B, R), "table": floats(B, K),
    }  # fmt: skip
    return step.lower(state, variables, batch, rule_of_table()[1])


STEPS = {"sample": sample, "update": update}


@functools.cache
def counted(step):
    lowered = STEPS[step]()
    analysis = lowered.cost_analysis()
    temporaries = lowered.compile().memory_analysis().temp_size_in_bytes
    return round(analysis["flops"]), round(analysis["bytes accessed"]), temporaries


@pytest.mark.parametrize("step", STEPS)
def test_a_step_costs_what_it_did(step):
    for name, now, then, room in zip(("FLOPs", "bytes", "temporaries"), counted(step), COSTS[step], ROOM, strict=True):
        assert now <= room * then, f"{step} takes {now / then:.3f} times the {name} it took"
        assert now >= 0.9 * then, f"{step} takes {now / then:.3f} times the {name} it took: lower COSTS"


@pytest.mark.parametrize("step", STEPS)
def test_a_prompt_is_computed_once_for_its_rollouts(step):
    # The rest is attention, norms, softmaxes, the optimiser; each prompt again for each rollout would be 1.6 and more.
    assert LEAST[step] <= counted(step)[0] <= 1.16 * LEAST[step]


def copies_of_caches(model, prompts, rollouts):
    """How many copies of a layer's whole keys or values the decode loops of 32 tokens (so two loops) hold."""
    how = sampler.How(model, rollouts, 32, (), 0, (1.0, None, None, None), None)
    arguments = abstract_variables(model), ints(prompts, 20), ints(prompts), ints(prompts), jax.random.key(0)
    entry, computations = hlo.parse(sampler._sample.lower(how, *arguments).compile().as_text())
    whole = {4 * prompts * rollouts * model.num_kv_heads * model.head_dim * slots for slots in (16, 32)}
    in_loops = [x for name, body in computations.items() if name != entry for x in body.values()]
    return sum(x.opcode == "copy" and not whole.isdisjoint(hlo.sizes(x.type)) for x in in_loops)


@pytest.mark.parametrize("prompts, rollouts, kv_heads", [(4, 16, 2), (1, 64, 2), (64, 1, 2), (4, 16, 1), (1, 64, 1)])
def test_a_decoded_token_copies_no_cache(prompts, rollouts, kv_heads):
    # An axis of length 1 made 16 copies. The vocabulary is small, so that logits are smaller than keys.
    assert copies_of_caches(MODEL.replace(num_kv_heads=kv_heads, vocab_size=64), prompts, rollouts) == 0


def wide_temporaries(statistics, chunk=None):
    """Bytes of temporaries of loss and gradient at a large vocabulary, as compiled."""
    variables, hidden = abstract_variables(WIDE), floats(WIDE_B, WIDE_T, WIDE.embed_dim)
    targets = ints(WIDE_B, WIDE_T)

    def loss(variables, hidden, targets):
        if statistics:
            return sum(x.sum() for x in token_statistics(WIDE, variables, variables, hidden, hidden, targets))
        return token_log_probs(WIDE, variables, hidden, targets, chunk=chunk).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(variables, hidden, targets).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_logits_of_a_large_vocabulary_are_never_all_there():
    all_logits = 4 * WIDE_B * WIDE_T * WIDE.vocab_size
    head = 4 * WIDE.embed_dim * WIDE.vocab_size  # its gradient is the result and one of the temporaries
    assert wide_temporaries(statistics=False) <= 1.1 * 322 * MIB < head + all_logits / 8
    assert wide_temporaries(statistics=True) <= 1.1 * 580 * MIB < 700 * MIB
    assert wide_temporaries(statistics=False, chunk=WIDE_T) > all_logits  # what is measured does see them


def test_the_step_of_alignment_compiles_once():
    (optimizer, step), (table_BK, rule, beta) = make_step(), rule_of_table()
    variables = transformer.init(MODEL, jax.random.key(0))
    state = init_state(jax.tree.map(jnp.copy, variables), optimizer, beta)
    random = np.random.default_rng(0)
    for turn in range(3):  # its own state comes back to it: a weak type or another layout would compile anew
        batch = {
            "prompt_tokens": random.integers(256, size=(B, S), dtype=np.int32),
            "prompt_lengths": np.array([S, 3], np.int32),
            "tokens": random.integers(256, size=(B, R, C), dtype=np.int32), "mask": np.ones((B, R, C), np.float32),
            "rewards": random.normal(size=(B, R)).astype(np.float32), "ended": np.ones((B, R), np.float32),
            "table": table_BK,
        }  # fmt: skip
        with Compilations() as compilations:
            state, _ = step(state, variables, batch, rule)
        assert compilations.count == (turn == 0)
    assert step._cache_size() == 1


def test_sampling_compiles_once_for_a_shape():
    variables, random = transformer.init(MODEL, jax.random.key(0)), np.random.default_rng(0)
    keys = [jax.random.key(seed) for seed in range(4)]
    for turn, temperature in enumerate((1.0, 1, np.float32(1), 1.0)):
        prompts = random.integers(256, size=(B, S), dtype=np.int32), np.array([S, 1 + turn], np.int32)
        with Compilations() as compilations:
            sampler.sample(
                MODEL, variables, *prompts, np.arange(B) + turn, keys[turn], rollouts=R, max_tokens=3, eos_ids=(1,),
                temperature=temperature,
            )  # fmt: skip
        assert compilations.count == (turn == 0)


def test_calibration_compiles_once_for_a_shape():
    random = np.random.default_rng(0)
    for turn in range(3):
        rewards, table = random.normal(size=(5, 7)), np.sort(random.normal(size=(5, 11)), 1)
        before = calibration._calibrate._cache_size()
        calibration.calibrate(rewards if turn else rewards.astype(np.float32), table, is_sorted=True)
        assert calibration._calibrate._cache_size() - before == (turn == 0)


if __name__ == "__main__":
    for name in STEPS:
        print(name, counted(name))

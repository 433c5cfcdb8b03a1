"""`infalign aot`: reading compiled programs, counting work, gradient accumulation, and a compile for two TPU slices."""

import importlib.util
import json
import math
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax import aot, recipe
from infalign_jax.models import config as model_config
from infalign_jax.models import transformer
from infalign_jax.scale import chips, hlo, libtpu_flags, report, work
from infalign_jax.stages import settings
from infalign_jax.training.accumulation import accumulate

ROOT = pathlib.Path(__file__).parents[1]
TINY = str(ROOT / "tests" / "tiny.py")

# An outer loop of 3 passes, an inner one of 5 - 1 passes by twos, a decode loop bounded by data, a second one after it.
MODULE = """HloModule m, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: bf16[2,4]) -> bf16[16,4] {
  %p = bf16[2,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[16,4]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=5, replica_groups=mesh['x'=1,'y'=8] {'y'}, dimensions={0}, frontend_attributes={chain_id="1"}, metadata={op_name="jit(f)/q"}
}

%fused_again (p: bf16[2,4]) -> bf16[16,4] {
  %p = bf16[2,4]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,4]{1,0} all-gather(%p), channel_id=5, replica_groups=mesh['x'=1,'y'=8] {'y'}, dimensions={0}, frontend_attributes={chain_id="1"}, metadata={op_name="jit(f)/q"}
}

%all-reduce-scatter.1 (s: bf16[16,4]) -> bf16[2,4] {
  %s = bf16[16,4]{1,0} parameter(0)
  %summed = bf16[16,4]{1,0} all-reduce(%s), channel_id=6, replica_groups=[1,8]<=[8], to_apply=%add
  %first = s32[] constant(0)
  ROOT %share = bf16[2,4]{1,0} dynamic-slice(%summed, %first, %first), dynamic_slice_sizes={2,4}
}

%inner_condition (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %five), direction=LT
}

%inner_body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %reduced = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %out = (s32[], f32[8]{0}) tuple(%next, %reduced)
}

%outer_body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %one = s32[] constant(1)
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %start = (s32[], f32[8]{0}) tuple(%one, %x)
  ROOT %inner = (s32[], f32[8]{0}) while(%start), condition=%inner_condition, body=%inner_body
}

%outer_condition (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%decode_condition (t: (s32[], pred[])) -> pred[] {
  %t = (s32[], pred[]) parameter(0)
  %step = s32[] get-tuple-element(%t), index=0
  %stop = s32[] constant(64)
  %more = pred[] compare(%step, %stop), direction=LT
  %live = pred[] get-tuple-element(%t), index=1
  ROOT %go = pred[] and(%more, %live)
}

%later_condition (t: (s32[], pred[])) -> pred[] {
  %t = (s32[], pred[]) parameter(0)
  %step = s32[] get-tuple-element(%t), index=0
  %stop = s32[] constant(100)
  %more = pred[] compare(%step, %stop), direction=LT
  ROOT %go = pred[] copy(%more)
}

%decode_body (t: (s32[], pred[])) -> (s32[], pred[]) {
  %t = (s32[], pred[]) parameter(0)
  %step = s32[] get-tuple-element(%t), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%step, %one)
  %w = f32[3]{0} constant({1, 2, 3})
  %noted = f32[3]{0} copy(%w), frontend_attributes={kernel_metadata={
"block": "x = 1"
}}
  %moved = (f32[3]{0}, f32[3]{0}, u32[], u32[]) collective-permute-start(%w), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %live = pred[] get-tuple-element(%t), index=1
  ROOT %out = (s32[], pred[]) tuple(%next, %live)
}

%later_body (t: (s32[], pred[])) -> (s32[], pred[]) {
  %t = (s32[], pred[]) parameter(0)
  %step = s32[] get-tuple-element(%t), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%step, %one)
  %w = f32[16]{0} constant({...})
  %part = f32[4]{0} reduce-scatter(%w), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
  %live = pred[] get-tuple-element(%t), index=1
  ROOT %out = (s32[], pred[]) tuple(%next, %live)
}

ENTRY %main (p: bf16[2,4], x: f32[8]) -> f32[8] {
  %p = bf16[2,4]{1,0} parameter(0)
  %x = f32[8]{0} parameter(1)
  %zero = s32[] constant(0)
  %true = pred[] constant(true)
  %one = bf16[16,4]{1,0} fusion(%p), kind=kCustom, calls=%fused
  %again = bf16[16,4]{1,0} fusion(%p), kind=kCustom, calls=%fused_again
  %mine = bf16[2,4]{1,0} fusion(%one), kind=kCustom, calls=%all-reduce-scatter.1
  %init = (s32[], f32[8]{0}) tuple(%zero, %x)
  %outer = (s32[], f32[8]{0}) while(%init), condition=%outer_condition, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
  %begin = (s32[], pred[]) tuple(%zero, %true)
  %decode = (s32[], pred[]) while(%begin), condition=%decode_condition, body=%decode_body
  %reached = s32[] get-tuple-element(%decode), index=0
  %from = (s32[], pred[]) tuple(%reached, %true)
  %later = (s32[], pred[]) while(%from), condition=%later_condition, body=%later_body
  %token = token[] after-all()
  %alone = f32[8]{0} all-reduce(%x), channel_id=4, replica_groups={{0},{1}}, to_apply=%add
  %recv = (f32[1,2]{1,0}, u32[], token[]) recv(%token), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %out = f32[8]{0} get-tuple-element(%outer), index=1
}
"""


def test_collectives_are_read_with_their_loops_groups_and_bytes():
    found = {c.name: c for c in hlo.collectives(MODULE)}
    assert set(found) == {"all-gather.1", "summed", "reduced", "moved", "part", "recv"}, (
        "one line a collective, none of one device"
    )
    get = lambda name: (found[name].kind, found[name].times, found[name].group, found[name].received)  # noqa: E731
    assert get("all-gather.1") == ("all-gather", 1, 8, 16 * 4 * 2 * 7 / 8)
    assert get("summed") == ("reduce-scatter", 1, 8, 16 * 4 * 2 * 7 / 8), (
        "a sum of which a device keeps its share alone"
    )
    assert get("reduced") == ("all-reduce", 3 * 2, 4, 2 * 8 * 4 * 3 / 4)
    assert get("moved") == ("collective-permute", 64, 2, 12)
    assert get("part") == ("reduce-scatter", 36, 4, 4 * 4 * 3)
    assert get("recv") == ("all-reduce", 1, 2, 8)
    assert [c.name for c in found.values() if c.crosses] == ["recv"]
    assert found["all-gather.1"].source == "jit(f)/q" and found["all-gather.1"].shape == (16, 4)


def test_a_loop_without_a_bound_is_refused():
    endless = MODULE.replace("%stop = s32[] constant(64)", "%stop = s32[] parameter(1)")
    with pytest.raises(ValueError, match="decode does not count up to a constant"):
        hlo.collectives(endless)


def test_sizes_of_types():
    assert hlo.sizes("(bf16[2,3]{1,0:T(8,128)(2,1)}, f32[], pred[4], token[])") == [12, 4, 4]


MODEL = model_config.from_dict(
    dict(vocab_size=48, num_layers=3, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24)
)
MESH = {"data": 2, "fsdp": 4, "tensor": 1}


def _dot_flops(jaxpr):
    """FLOPs of all matrix products of a jaxpr, loops multiplied in: counted from what is traced, not from formulas."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        inner = [getattr(value, "jaxpr", None) for value in equation.params.values()]
        total += equation.params.get("length", 1) * sum(_dot_flops(each) for each in inner if each is not None)
    return total


def test_forward_flops_are_those_traced():
    B, R, S, C = 2, 3, 5, 4
    variables = transformer.init(MODEL, jax.random.key(0))

    def forward(tokens_BS, lengths_B, tokens_BRC):
        hidden = transformer.completion_states(MODEL, variables, tokens_BS, lengths_B, tokens_BRC)
        return transformer.unembed(MODEL, variables, hidden)

    i = jnp.int32
    traced = jax.make_jaxpr(forward)(jnp.zeros((B, S), i), jnp.ones(B, i), jnp.zeros((B, R, C), i))
    norms = work.parameters(MODEL)[0] - sum(
        math.prod(leaf["kernel"].shape) for leaf in variables["params"]["layers"].values() if "kernel" in leaf
    )
    counted = work.forward_flops(MODEL, work.Sizes(B, R, S, C, 1, MESH)) - 2 * norms * B * (S + R * C)
    assert _dot_flops(traced.jaxpr) == counted


def test_work_of_a_step_follows_the_mesh_and_the_microbatches():
    sizes = work.Sizes(8, 4, 16, 16, 1, MESH)
    _, _, total = work.parameters(MODEL)
    full = work.align(MODEL, sizes, 0)
    # float32: three gathers and a scatter over 4, the average of a quarter of the gradient over 2, and [16] for each of
    # 16 + 4 * 15 slots of a chip's prompt: two lookups and a gradient
    moved, rows = 4 * total * 4 * 3 / 4 + 2 * total / 4 * 4 / 2, 3 * (16 + 4 * 15) * 16 * 4 * 3 / 4
    assert full.exchange == pytest.approx(moved + rows)
    assert work.align(MODEL, sizes._replace(microbatches=2), 0).exchange == pytest.approx(2 * moved + rows)
    assert work.align(MODEL, sizes._replace(mesh=dict(data=1, fsdp=1, tensor=1)), 0).exchange == 0
    assert work.align(MODEL.replace(remat="layer"), sizes, 0).flops == pytest.approx(1.25 * full.flops)
    assert work.align(MODEL, sizes, 100).useful == pytest.approx(0.75 * full.useful)


def test_work_of_rollouts_follows_their_layout():
    sizes, (layers, head, total) = work.Sizes(8, 4, 16, 16, 1, MESH), work.parameters(MODEL)
    # Prefill gathers the layers over 4, and every parameter is laid out anew. Then, for each of 16 tokens of the 8/2 x 4 rows
    # of a data group: 2 sums [rows, 16] in each of 3 layers and one in the lookup, received twice over; [rows, 4 + 2 + 2 + 4
    # heads of 8] a layer and the logits [rows, 48] change their split.
    moved = 16 * (2 * (2 * 3 + 1) * 16 + (3 * 12 * 8 + 48) / 4)
    once = layers + total / 4 + 16 * 16  # and the rows looked up, [16 slots, 16] of a chip's prompt
    assert work.sampling(MODEL, sizes, 0).exchange == pytest.approx(4 * 3 / 4 * (once + 16 * moved))
    # Six prompts do not divide by the eight chips: then each token gathers layers and head.
    odd = work.sampling(MODEL, sizes._replace(B=6), 0).exchange
    assert odd == pytest.approx(4 * 3 / 4 * 16 * (layers + head))
    assert work.sampling(MODEL, sizes._replace(mesh=dict(data=8, fsdp=1, tensor=1)), 0).exchange == 0


def test_gradient_accumulation_changes_nothing():
    """The whole align step with microbatches is compared, on a mesh, in tests/multi_device.py; here every share of a batch."""
    rng = np.random.default_rng(0)
    weights = {"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), "b": jnp.asarray([0.1, -0.2], jnp.bfloat16)}
    batch = {"x": rng.normal(size=(12, 3)).astype(np.float32), "y": rng.normal(size=(12, 2)).astype(np.float32)}

    def loss(weights, batch):
        error = jnp.tanh(batch["x"] @ weights["w"] + weights["b"].astype(jnp.float32)) - batch["y"]
        return (error**2).mean(), {"x": batch["x"].mean()}

    def of(parts):
        return jax.jit(lambda w, b: accumulate(jax.grad(loss, has_aux=True), w, b, parts))(weights, batch)

    for parts in (2, 3, 12):
        (gradients, metrics), (again, others) = of(1), of(parts)
        np.testing.assert_allclose(gradients["w"], again["w"], rtol=1e-6, atol=1e-7)
        assert again["b"].dtype == jnp.bfloat16
        np.testing.assert_allclose(gradients["b"].astype(np.float32), again["b"].astype(np.float32), rtol=2**-7)
        np.testing.assert_allclose(metrics["x"], others["x"], rtol=1e-5)


def test_microbatches_divide_the_prompts():
    config = recipe.load(TINY)
    with config.unlocked():
        config.align.microbatches = 3
    with pytest.raises(ValueError, match=r"config.align.microbatches is 3; it must divide .*prompts_per_step \(16\)"):
        settings.resolve(config, "x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology=v5e:8x8"], "--config is missing"),
        (["--config", TINY], "--topology is missing"),
        (["--config", TINY, "--topology=v9:8x8"], "its generation must be one of v4, v5e, v5p, v6e"),
        (["--config", TINY, "--topology=v5e"], "after the colon come 2 sizes, as in v5e:8x8"),
        (["--config", TINY, "--topology=v5e:4x4x4"], "after the colon come 2 sizes, as in v5e:8x8"),
        (["--config", TINY, "--topology=v5p:4x4"], "after the colon come 3 sizes, as in v5p:8x8x8"),
        (
            ["--config", TINY, "--topology=v5e:2x2", "--json=no/such/report.json"],
            "--json is 'no/such/report.json'; it must",
        ),
        (["--config", TINY, "--topology=v5e:2x2", "--steps=align,sft"], "it takes some of sample, score, align"),
        (["--config", TINY, "--topology=v5e:2x2", "--effort=2"], "it must be from -1 to 1"),
        (["--config", TINY, "--topology=v5e:2x2", "--chips=4"], "aot has no flag '--chips=4'"),
    ],
)
def test_bad_flags_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        aot.main(words)


def test_data_may_be_where_the_slice_is():
    config = recipe.load(TINY).copy_and_resolve_references()
    with config.unlocked():
        config.data.path = "/mnt/of/the/slice"
    with pytest.raises(ValueError, match=r"config\.data\.path is '/mnt/of/the/slice', which does not exist"):
        settings.resolve(config, "x")
    for preset in ("", "gemma2_2b"):
        assert aot._model(config, preset)[0].data.path == "/mnt/of/the/slice"


@pytest.mark.parametrize("limit", [0.5, 3.0, 9.99, 40.0, 1000.0])
def test_the_largest_batch_is_the_last_that_fits(monkeypatch, limit):
    """A pretended compiler needs 1 + 0.5 n + 0.001 n² GB for n prompts a chip: found by trying every n up to the search's end."""
    peak = lambda units: 1 + 0.5 * units + 0.001 * units**2  # noqa: E731
    config = recipe.load(TINY)
    with config.unlocked():
        config.align.prompts_per_step, config.align.microbatches = 16, 2
    mesh = SimpleNamespace(shape={"data": 1, "fsdp": 2})
    monkeypatch.setattr(report, "steps", lambda config, model, mesh: {"align": config.align.prompts_per_step})

    def measured(name, prompts, *_):
        return {"peak": peak(prompts / 4), "fits": peak(prompts / 4) <= limit}

    monkeypatch.setattr(report.measure, "measure", measured)
    known = {"align": measured("align", 16)}
    found = report.largest(config, None, mesh, SimpleNamespace(hbm=limit), ("align",), 0, known)
    true = max([n for n in range(257) if peak(n) <= limit and n] or [0])
    assert found["prompts"] % 4 == 0 and found["prompts"] / 4 <= true
    assert found["prompts"] / 4 >= 0.9 * true - 1


def test_every_chip_has_flags_and_every_flag_a_reason():
    assert set(libtpu_flags.FLAGS) == set(chips.CHIPS)
    for flags in libtpu_flags.FLAGS.values():
        assert all(flag.startswith("--xla") and "=" in flag and len(why) > 20 for flag, why in flags.items())


# A process that has libtpu's lock, or found that another one has.
HOLD_LIBTPU = """
import os, sys
from infalign_jax.scale import chips
chips.pretend("v5e")
del os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"]
try:
    chips.devices("v5e:2x2")
except ValueError as error:
    assert "lockfile" in str(error) or "already in use" in str(error), error
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: install infalign-jax[tpu]")
@pytest.mark.parametrize("steps", ["align", pytest.param("sample,score", marks=pytest.mark.slow)])
def test_the_steps_compile_for_two_slices_while_another_process_holds_libtpu(tmp_path, steps):
    words = ["--config", TINY, "--topology=v5e:2x2", "--slices=2", "--config.mesh.data=2", "--config.mesh.fsdp=4"]
    words += [
        "--config.align.microbatches=2",
        "--config.model.embed_dim=128",
        "--config.model.remat=layer",
        f"--config.model.attention={'splash' if steps == 'align' else 'xla'}",
        "--effort=-1",
        f"--steps={steps}",
    ]
    command = [sys.executable, "-m", "infalign_jax", "aot", *words, f"--json={tmp_path / 'report.json'}"]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LIBTPU], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == b"held\n"
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)
        other.communicate()
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["chips"] == 8 and report["slices"] == 2
    assert ",".join(report["steps"]) == steps
    for numbers in report["steps"].values():
        assert numbers["fits"] is True and 0 < numbers["arguments"] < numbers["peak"] < numbers["hbm"]
        assert numbers["received_total"] > 0
    # Between the slices goes each chip's share of the gradient, and, while sampling, whether all have ended.
    across = {name: numbers["received_across_slices"] for name, numbers in report["steps"].items()}
    assert across.get("align", 1) > 0 and across.get("score", 0) == 0 and across.get("sample", 0) < 1e5

"""How the align step's cost grows with the number of devices: `python -m infalign_jax.scale.growth`.

One small model and one global batch: compiled for 16 to 2,048 chips that need not exist; and, with fewer prompts, compiled and
run on 1 to 8 CPU devices of this machine. Numbers go to docs/growth.json, the figure to docs/images/growth.png. `--parts cpu` or `v5p` does
one of the two, `--parts ""` only draws.
"""

import json
import pathlib
import time

from infalign_jax import flags, recipe
from infalign_jax.scale import chips

ROOT = pathlib.Path(__file__).parents[2]
NUMBERS, FIGURE = ROOT / "docs" / "growth.json", ROOT / "docs" / "images" / "growth.png"
SLICES = ("v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x16", "v5p:8x16x16")
DEVICES = (1, 2, 4, 8)
FSDP, PROMPTS, CPU_PROMPTS, ROUNDS = 16, 4096, 16, 3
SIZES = dict(vocab_size=4096, num_layers=4, embed_dim=512, num_heads=8, num_kv_heads=4, head_dim=64, mlp_dim=2048)


def small(prompts, dtype, **mesh):
    """The recipe and the architecture of the figure: small enough to compile in a minute, with every kind of parameter."""
    from infalign_jax.models import config as model_config

    config = recipe.load(ROOT / "configs" / "quickstart.py").copy_and_resolve_references()
    with config.unlocked():
        config.mesh.update(mesh)
        config.align.prompts_per_step, config.align.rollouts, config.align.microbatches = prompts, 2, 1
        config.data.prompt_tokens = config.data.response_tokens = 32
    return config, model_config.from_dict({**SIZES, "dtype": dtype, "remat": "layer"})


def compiled_for(devices, config, model, effort=0):
    """(the compiled align step, what it costs a device, a dict of plain numbers)."""
    from infalign_jax.scale.hlo import collectives
    from infalign_jax.scale.measure import compile_step, exchanges
    from infalign_jax.scale.steps import steps
    from infalign_jax.training.mesh import make_mesh

    mesh = make_mesh(config.mesh, devices)
    step = steps(config, model, mesh)["align"]
    compiled, error, _ = compile_step(step, effort)
    if compiled is None:
        raise ValueError(f"{mesh.size} devices: {error.splitlines()[0]}")
    found = exchanges(collectives(compiled.as_text()), model, step.work)
    # The compiler counts a loop's body once; the only loops here, over layers and token slots, are as long everywhere.
    return compiled, {
        "devices": mesh.size, "mesh": dict(mesh.shape), "flops": compiled.cost_analysis()["flops"],
        "received": found["received_total"], "theory": found["fsdp_theory"], "kinds": found["received"],
    }  # fmt: skip


def timed(compiled):
    """Median wall seconds of a step on devices that are there; its state goes from one call to the next."""
    import jax
    import numpy as np

    def filled(info, sharding):
        return jax.device_put(
            np.full(info.shape, 1 if np.issubdtype(info.dtype, np.integer) else 0.01, info.dtype), sharding
        )

    state, *others = jax.tree.map(filled, compiled.args_info[0], compiled.input_shardings[0])
    seconds = []
    for _ in range(1 + ROUNDS):
        started = time.monotonic()
        state, metrics = compiled(state, *others)
        jax.block_until_ready((state, metrics))
        seconds.append(time.monotonic() - started)
    return float(np.median(seconds[1:]))


def on_cpu():
    """Rows of the CPU devices, with wall seconds; all of them share the cores of this machine."""
    import jax

    for count in DEVICES:
        compiled, row = compiled_for(jax.devices()[:count], *small(CPU_PROMPTS, "float32", data=1, fsdp=count))
        yield row | {"seconds": timed(compiled)}


def on_slices():
    """Rows of the slices, compiled only."""
    for topology in SLICES:
        config = small(PROMPTS, "bfloat16", data=-1, fsdp=FSDP)
        yield {"topology": topology} | compiled_for(chips.devices(topology), *config, effort=-1)[1]


PARTS = {"cpu": on_cpu, "v5p": on_slices}


def main(words):
    """Compiles, measures and draws."""
    given = flags.parse("python -m infalign_jax.scale.growth", words, {"parts": (",".join(PARTS), str)})
    parts = [part for part in given["parts"].split(",") if part]
    if not set(parts) <= set(PARTS):
        raise ValueError(
            f"--parts is {','.join(parts)!r}; it takes some of {', '.join(PARTS)}, with commas between them"
        )
    chips.pretend("v5p")
    import jax

    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    known = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    for part in parts:
        known[part] = []
        for row in PARTS[part]():
            known[part].append(row)
            print(json.dumps(row), flush=True)
        NUMBERS.write_text(json.dumps({name: known[name] for name in PARTS if name in known}, indent=1) + "\n")
    draw(known)


TITLES = {"cpu": f"CPU devices, {CPU_PROMPTS} prompts", "v5p": f"v5p chips, {PROMPTS:,} prompts"}


def draw(rows):
    """The figure: a row of panels for CPU devices and one for chips; FLOPs against 1 / n, bytes received against theory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from infalign_jax.reporting import style

    with matplotlib.rc_context(style.RC):
        figure, grid = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
        for (left, right), (name, found) in zip(
            grid, ((name, rows[name]) for name in PARTS if name in rows), strict=False
        ):
            sizes = [row["devices"] for row in found]
            even = [found[0]["flops"] * sizes[0] / n / 1e9 for n in sizes]
            _panel(left, sizes, even, "1 / n", [row["flops"] / 1e9 for row in found], style.LOOKS["identity"])
            theory, received = ([row[key] / 1e6 for row in found] for key in ("theory", "received"))
            _panel(right, sizes, theory, "FSDP theory", received, style.LOOKS["exponential+"])
            left.set(yscale="log", ylabel="GFLOP a device (loops once)", title=TITLES[name])
            left.set_yticks(even, [f"{value:,.0f}" for value in even])
            left.minorticks_off()
            right.set(ylim=(0, None), ylabel="MB received by a device", title=TITLES[name])
            for axes in (left, right):
                axes.set_xlabel("devices, n" if name == "cpu" else "chips, n")
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(FIGURE, dpi=150)
        plt.close(figure)


def _panel(axes, sizes, expected, what, found, look):
    from infalign_jax.reporting import style

    axes.plot(sizes, expected, color=style.MUTED, ls="--", label=what)
    axes.plot(sizes, found, color=look.color, marker=look.marker, ls="", label="compiled program")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes], fontsize="small")
    axes.minorticks_off()
    axes.legend(frameon=False)


if __name__ == "__main__":
    from infalign_jax.main import cli

    cli(main)

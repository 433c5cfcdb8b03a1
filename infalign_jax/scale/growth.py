"""How the align step's cost grows with the slice: `python -m infalign_jax.scale.growth` compiles it for 16 to 2,048 chips.

A small model and one global batch; numbers go to docs/growth.json, the figure to docs/images/growth.png.
"""

import json
import pathlib

from infalign_jax import recipe
from infalign_jax.scale import chips

ROOT = pathlib.Path(__file__).parents[2]
NUMBERS, FIGURE = ROOT / "docs" / "growth.json", ROOT / "docs" / "images" / "growth.png"
SLICES = ("v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x16", "v5p:8x16x16")
FSDP, PROMPTS = 16, 4096


def small(config):
    """The recipe and the architecture of the figure: small enough to compile in a minute, with every kind of parameter."""
    from infalign_jax.models import config as model_config

    with config.unlocked():
        config.mesh.data, config.mesh.fsdp = -1, FSDP
        config.align.prompts_per_step, config.align.rollouts, config.align.microbatches = PROMPTS, 2, 1
        config.data.prompt_tokens = config.data.response_tokens = 32
    sizes = dict(vocab_size=4096, num_layers=4, embed_dim=512, num_heads=8, num_kv_heads=4, head_dim=64, mlp_dim=2048)
    return config, model_config.from_dict({**sizes, "dtype": "bfloat16", "remat": "layer"})


def main():
    """Compiles every slice and draws the figure."""
    chips.pretend("v5p")
    from infalign_jax.scale.hlo import collectives
    from infalign_jax.scale.measure import compile_step, exchanges
    from infalign_jax.scale.steps import steps
    from infalign_jax.training.mesh import make_mesh

    config, model = small(recipe.load(ROOT / "configs" / "quickstart.py").copy_and_resolve_references())
    rows = []
    for topology in SLICES:
        mesh = make_mesh(config.mesh, chips.devices(topology))
        step = steps(config, model, mesh)["align"]
        compiled, error, seconds = compile_step(step, -1)
        if compiled is None:
            raise ValueError(f"{topology}: {error.splitlines()[0]}")
        found = exchanges(collectives(compiled.as_text()), model, step.work)
        # The compiler counts a loop's body once; the only loops here, over layers, are as long on every slice.
        rows.append(
            {
                "topology": topology, "chips": mesh.size, "mesh": dict(mesh.shape), "seconds": round(seconds, 1),
                "flops": compiled.cost_analysis()["flops"], "received": found["received_total"],
                "theory": found["fsdp_theory"], "kinds": found["received"],
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    NUMBERS.write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows)


def draw(rows):
    """The figure: FLOPs a chip against 1 / chips, and bytes a chip receives against theory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from infalign_jax.reporting import style

    sizes = [row["chips"] for row in rows]
    with matplotlib.rc_context(style.RC):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        first, look, other = rows[0], style.LOOKS["identity"], style.LOOKS["exponential+"]
        left.plot(sizes, [first["flops"] * sizes[0] / n for n in sizes], color=style.MUTED, ls="--", label="1 / chips")
        left.plot(sizes, [row["flops"] for row in rows], color=look.color, marker=look.marker, ls="", label="compiled")
        left.set(title="FLOPs a chip (loop bodies once)", yscale="log")
        right.plot(sizes, [row["theory"] / 1e6 for row in rows], color=style.MUTED, ls="--", label="FSDP theory")
        right.plot(
            sizes,
            [row["received"] / 1e6 for row in rows],
            color=other.color,
            marker=other.marker,
            ls="",
            label="compiled",
        )
        right.set(title="MB a chip receives in a step", ylim=(0, None))
        for axes in (left, right):
            axes.set(xscale="log", xlabel="chips", xticks=sizes)
            axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
            axes.minorticks_off()
            axes.legend(frameon=False)
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(FIGURE, dpi=150)
        plt.close(figure)


if __name__ == "__main__":
    main()

"""Compiling a step for a slice, and what the result says: memory, collectives, bounds on time."""

import re
import time

import jax

from infalign_jax.scale import hlo

LARGEST_SHARE = 0.9  # of the parameters in one gather: that much at once defeats their splitting


def compile_step(step, effort):
    """(compiled, None), or (None, why not) where the chip's memory is too small; and the seconds it took.

    effort: XLA's optimisation effort, -1 to 1; 0 is what runs use. -1 compiles several times faster, with the same
    partitioning and less scheduling.
    """
    started = time.monotonic()
    lowered = step.lower()
    try:
        return lowered.compile(compiler_options=_options(effort)), None, time.monotonic() - started
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error), time.monotonic() - started


def _options(effort):
    if not effort:
        return None
    if hasattr(jax.config, "jax_exec_time_optimization_effort"):
        return {"exec_time_optimization_effort": effort}
    return {"optimization_level": "O1" if effort < 0 else "O3"}  # jax 0.12 has levels in place of a number; O2 is its 0


def measure(name, step, model, chip, mesh, effort):
    """A dict of plain numbers about one step on one chip; see `docs/scale.md` for what each means."""
    compiled, error, seconds = compile_step(step, effort)
    chips = mesh.size
    report = {"step": name, "compile_seconds": round(seconds, 1), "hbm": chip.hbm, "chips": chips}
    report |= {f"{key}_per_chip": getattr(step.work, key) / chips for key in ("flops", "useful")}
    if compiled is None:
        used = re.search(r"Used ([\d.]+)([GM]) of", error)
        peak = float(used[1]) * {"G": 2**30, "M": 2**20}[used[2]] if used else None
        return report | {"fits": False, "peak": peak, "why": error.splitlines()[0][:300]}
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    report |= {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "peak": peak,
        "fits": bool(peak <= chip.hbm),
    }
    found = hlo.collectives(compiled.as_text())
    return report | exchanges(found, model, step.work) | bounds(found, step.work, chip, chips)


def exchanges(found, model, work):
    """Bytes a chip receives by kind of collective, against what the layout needs, and the largest single gather."""
    kinds = {kind: sum(c.received * c.times for c in found if c.kind == kind) for kind in hlo.KINDS}
    total = sum(kinds.values())
    gathers = [c for c in found if c.kind == "all-gather"]
    largest = max(gathers, key=lambda c: c.result, default=None)
    whole = 2 * _parameters(model)
    logits = [
        c for c in found if model.vocab_size in c.shape and model.embed_dim not in c.shape and c.kind == "all-gather"
    ]
    return {
        "received": {kind: size for kind, size in kinds.items() if size},
        "received_total": total,
        "fsdp_theory": work.exchange,
        "ratio": total / work.exchange if work.exchange else None,
        "largest_gather": largest.result if largest else 0,
        "largest_gather_of": largest.source if largest else "",
        "gathers_whole_tree": bool(largest and largest.result >= LARGEST_SHARE * whole),
        "gathers_logits": bool(logits),
    }


def bounds(found, work, chip, chips):
    """Least seconds by each resource alone, and the FLOP utilisation possible if all of them overlap perfectly."""
    inside = sum(c.received * c.times for c in found if not c.crosses)
    across = sum(c.received * c.times for c in found if c.crosses)
    seconds = {
        "compute": work.flops / chips / chip.flops,
        "hbm": work.hbm / chip.hbm_rate,
        "ici": inside / chip.ici,
        "dcn": across / chip.dcn if across and chip.dcn else 0.0,
    }
    longest = max(seconds.values())
    return {
        "received_across_slices": across,
        "seconds": seconds,
        "bound_by": max(seconds, key=seconds.get),
        "mfu_bound": work.useful / chips / chip.flops / longest,
    }


def _parameters(model):
    from infalign_jax.scale.work import parameters

    return parameters(model)[2]

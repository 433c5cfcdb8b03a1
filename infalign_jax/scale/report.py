"""The report of `infalign aot` in words, and the search for the largest batch that fits."""

import functools

from infalign_jax.scale import measure
from infalign_jax.scale.steps import batch_ways, steps

GB = 1e9


def heading(found, config, model):
    """Lines about the slice, the mesh and the batch."""
    mesh, slices = found["mesh"], f"{found['slices']} slices of " if found["slices"] > 1 else ""
    yield f"slice              {slices}{found['topology']}, {found['chips']} chips, mesh {mesh}"
    yield (
        f"model              {found['preset'] or config.model.path or 'fresh'}, {model.dtype}, remat {model.remat}"
        + (f", adapters of rank {config.lora.rank}" if config.lora.rank else ", all parameters train")
    )
    yield (
        f"batch              {found['prompts']} prompts x {found['rollouts']} rollouts, {' + '.join(map(str, found['slots']))} "
        f"slots, {found['microbatches']} microbatches"
    )
    ways = mesh["data"] * mesh["fsdp"]
    if found["prompts"] // found["microbatches"] % ways:
        yield (
            f"warning            {found['prompts']} prompts in {found['microbatches']} microbatches do not divide by the {ways} "
            "chips of data x fsdp: every chip does the whole batch"
        )


def lines(numbers):
    """Lines about one step on one chip."""
    yield f"\n{numbers['step']}  (compiled in {numbers['compile_seconds']:.0f} s)"
    room = numbers["hbm"]
    if "arguments" not in numbers:
        over = f", {(numbers['peak'] - room) / GB:.1f} GB too much" if numbers["peak"] else ""
        yield f"  memory           DOES NOT FIT in {room / GB:.1f} GB{over}: {numbers['why']}"
        return
    state = "fits, with" if numbers["fits"] else "DOES NOT FIT, by"
    yield (
        f"  memory           {numbers['peak'] / GB:.2f} GB of {room / GB:.1f}: {state} "
        f"{abs(room - numbers['peak']) / GB:.2f} GB {'to spare' if numbers['fits'] else ''}".rstrip()
        + f" (arguments {numbers['arguments'] / GB:.2f}, temporaries {numbers['temporaries'] / GB:.2f})"
    )
    yield f"  FLOPs            {numbers['flops_per_chip']:.3g} ({numbers['useful_per_chip']:.3g} without recomputation)"
    kinds = ", ".join(f"{kind} {size / GB:.2f}" for kind, size in numbers["received"].items()) or "none"
    ratio = f"; {numbers['ratio']:.2f} of theory ({numbers['fsdp_theory'] / GB:.2f})" if numbers["ratio"] else ""
    yield f"  collectives      {numbers['received_total'] / GB:.2f} GB received: {kinds}{ratio}"
    yield f"  largest gather   {numbers['largest_gather'] / GB:.3f} GB, {numbers['largest_gather_of'][-70:] or '-'}"
    seconds = ", ".join(f"{name} {value:.3g}" for name, value in numbers["seconds"].items() if value)
    yield f"  seconds at least {seconds}"
    yield f"  MFU at most      {100 * numbers['mfu_bound']:.0f} %, bound by {numbers['bound_by']}"


def largest(config, model, mesh, chip, names, effort, known):
    """{'prompts': ...}: the largest config.align.prompts_per_step for which the steps `names` fit; 0 if none does.

    The peak is nearly a straight line in the prompts a chip holds. Two compilations give the line, further ones verify
    what it predicts, stepping down until one fits.
    """
    unit = batch_ways(mesh) * config.align.microbatches

    @functools.cache
    def peak(units):
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.align.prompts_per_step = units * unit
        found = [measure.measure(n, steps(changed, model, mesh)[n], model, chip, mesh, effort) for n in names]
        return max((n["peak"] or float("inf")) for n in found), all(n["fits"] for n in found)

    given = max(1, config.align.prompts_per_step // unit)
    here = peak(given) if given * unit != config.align.prompts_per_step else (
        max(n["peak"] or float("inf") for n in known.values()), all(n["fits"] for n in known.values())
    )  # fmt: skip
    other = 2 * given if here[1] else max(1, given // 2)
    there = peak(other)
    slope = (there[0] - here[0]) / (other - given) if other != given else 0
    guess = other if slope <= 0 else int(given + (chip.hbm - here[0]) / slope)
    guess = max(1, min(guess, 64 * given))
    while not (fits := here[1] if guess == given else peak(guess)[1]) and guess > 1:
        guess -= max(1, guess // 16)
    return {"prompts": guess * unit if fits else 0}

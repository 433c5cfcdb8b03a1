"""Versions, devices, memory, disk, caches, and what a config would run: `infalign doctor`."""

import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys

from infalign_jax import __version__, recipe

PAGE = """infalign doctor [--config FILE] [--workdir DIR] [--config.section.key=value ...]

  Prints versions, devices, memory, free disk and the compilation cache. With a config: whether it is legal, the size of
  its model, and what each stage would run; with a workdir too, what is done there already. Nothing is run or changed.
"""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "ml_collections", "sentencepiece", "numpy")
GIB = 2**30


def main(words):
    """The command: prints the machine, and the config if one is given."""
    if {"--help", "-h"} & set(words):
        return print(PAGE, end="")
    config, workdir, words = recipe.parse(words)
    if words:
        raise ValueError(f"doctor takes --config, --workdir and --config.section.key=value, not {words[0]!r}")
    print(*machine(workdir or "."), sep="\n")
    if config is not None:
        print("", *plan(config, workdir), sep="\n")


def machine(folder):
    """Lines about versions, devices, memory and disk; `folder` is where results would go."""
    import jax

    from infalign_jax.training import compilation

    compilation.use_cache()
    cache = jax.config.jax_compilation_cache_dir
    rows = {
        "infalign-jax": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.platform()}, {os.cpu_count()} cores",
        **{name: _version(name) for name in PACKAGES},
        "devices": _devices(jax.devices()),
        "processes": f"{jax.process_count()}",
        "memory": _memory(),
        "disk": _disk(folder),
        "compilation cache": f"{cache} ({_size(cache) / GIB:.2f} GiB)" if cache else "off",
    }
    return [f"{name:<18} {value}" for name, value in rows.items()]


def plan(config, workdir=""):
    """Lines about what a config would run. Raises ValueError if it is not legal."""
    import jax

    from infalign_jax.models import transformer
    from infalign_jax.stages import order, settings
    from infalign_jax.stages.architecture import architecture

    config = settings.resolve(config, workdir or "not-chosen")
    model = architecture(config, config.tokenizer.vocab_size)
    shapes = jax.eval_shape(lambda key: transformer.init(model, key), jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    data, section = config.data, config.align
    work = {
        "sft": f"{config.sft.steps} steps of {config.sft.batch_size} demonstrations",
        "reward-model": f"{config.reward_model.steps} steps of {config.reward_model.batch_size} pairs",
        "calibrate": f"{config.calibrate.rollouts} rollouts for each training prompt",
        "amortize": f"{config.amortize.steps} steps of {config.amortize.batch_size} prompts with their rows of the table",
        "prefix-scorer": f"{config.prefix_scorer.rollouts} rollouts for each training prompt, {config.prefix_scorer.steps} steps",
        "align": f"{len(section.methods)} methods ({', '.join(section.methods)}), {section.steps} steps of "
        f"{section.prompts_per_step} prompts x {section.rollouts} rollouts, KL {section.target_kl} nats",
        "evaluate": f"{config.evaluate.samples} responses to each held-out prompt, several times for each method",
    }
    states = {name: order.state(config, name) if workdir else "" for name in work}
    states = {name: state or ("" if order.outputs(config, name) else "nothing to do") for name, state in states.items()}
    return [
        f"data               {data.name} {data.path}".rstrip(),
        f"reward, judge      {config.reward}, {config.judge}",
        f"model              {count / 1e6:.2f} million parameters with {model.vocab_size} pieces (the most it may have), "
        f"{model.num_layers} layers, {config.model.dtype}",
        "would run",
        *(f"  {name:<16} {states[name] or text}" for name, text in work.items()),
    ]


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices(devices):
    kinds = [device.device_kind for device in devices]
    text = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    return text + (f", {memory / GIB:.1f} GiB each" if memory else "")


def _memory():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else None
    return f"{total / GIB:.1f} GiB" + (f", {free / GIB:.1f} GiB of it unused" if free else "")


def _disk(folder):
    if "://" in folder:
        return f"{folder} is remote"
    place = pathlib.Path(folder).resolve()
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    right = "" if os.access(place, os.W_OK) else "; it cannot be written"
    return f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free at {place}{right}"


def _size(folder):
    return sum(file.stat().st_size for file in pathlib.Path(folder).rglob("*") if file.is_file())

"""`infalign aot`: compiles the real steps of a config for a TPU slice that need not exist, and says whether they fit."""

import json
import pathlib

from infalign_jax import flags, recipe
from infalign_jax.scale import chips

PAGE = """infalign aot --config FILE --topology v5e:8x8 [--slices 2] [--preset NAME] [--steps sample,score,align]
             [--effort -1] [--largest] [--json PATH] [--config.section.key=value ...]

  Compiles what the stages run (rollouts, log-probabilities under the reference, the align step) for a TPU slice, without
  one: libtpu from infalign-jax[tpu] does it on any machine. Prints for one chip: memory against what it has, FLOPs, bytes
  that collectives bring in, and bounds on the time of a step from the chip's published numbers.

  --topology   generation and shape in chips: v4:4x4x4, v5e:8x8, v5p:4x4x8, v6e:16x16, ...
  --slices     how many such slices, joined by the data centre network; config.mesh.data spans them
  --preset     a published architecture, such as gemma2_2b, in place of the model in config.model.path
  --steps      which to compile; all three by default
  --effort     of the compiler, -1 to 1: 0 is what real runs use, -1 compiles several times faster
  --largest    also look for the largest config.align.prompts_per_step that fits
  --json       also write the numbers there
"""
STEPS = ("sample", "score", "align")


def main(words):
    """The command: prints a report for each step."""
    if {"--help", "-h"} & set(words):
        return print(PAGE, end="")
    own, rest = _split(words)
    given = flags.parse("infalign aot", own, _TABLE)
    config, _, _ = recipe.parse(rest)
    if config is None:
        raise ValueError("--config is missing; see infalign aot --help")
    file = pathlib.Path(given["json"])
    if (file.is_dir() and given["json"]) or not file.parent.is_dir():
        raise ValueError(f"--json is {given['json']!r}; it must name a file in a folder that exists")
    report = run(config, given)
    if given["json"]:
        file.write_text(json.dumps(report, indent=1) + "\n")


def step_names(text):
    """The steps that a text names; ValueError if it names another."""
    names = tuple(text.split(","))
    if not set(names) <= set(STEPS):
        raise ValueError(f"--steps is {text!r}; it takes some of {', '.join(STEPS)}, with commas between them")
    return names


_TABLE = {
    "topology": (None, str),
    "slices": (1, int),
    "preset": ("", str),
    "steps": (",".join(STEPS), str),
    "effort": (0.0, float),
    "largest": (False, bool),
    "json": ("", str),
}


def _split(words):
    """The command's own words, and those about the recipe."""
    own, about, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        mine = not word.startswith("--config")
        (own if mine else about).append(word)
        if not mine and "=" not in word and rest and not rest[0].startswith("--"):
            about.append(rest.pop(0))
    return own, about


def run(config, given):
    """The report as a dict, printed step by step.

    Args:
      config: ConfigDict with every key of configs/base.py.
      given: values of the flags.

    Raises:
      ValueError: a bad config or flag, in one sentence.
    """
    chip, names = chips.chip_of(given["topology"]), step_names(given["steps"])
    if not -1 <= given["effort"] <= 1:
        raise ValueError(f"--effort is {given['effort']}; it must be from -1 to 1")
    chips.pretend(given["topology"].partition(":")[0])
    from infalign_jax.scale import measure, report
    from infalign_jax.scale.steps import steps
    from infalign_jax.training.mesh import make_mesh

    config, model = _model(config, given["preset"])
    mesh = make_mesh(config.mesh, chips.devices(given["topology"], given["slices"]))
    found = {
        "topology": given["topology"], "slices": given["slices"], "chips": mesh.size, "preset": given["preset"],
        "mesh": dict(mesh.shape), "prompts": config.align.prompts_per_step, "rollouts": config.align.rollouts,
        "microbatches": config.align.microbatches, "lora": config.lora.rank, "slots": [config.data.prompt_tokens, config.data.response_tokens],
        "steps": {},
    }  # fmt: skip
    print(*report.heading(found, config, model), sep="\n", flush=True)
    for name in names:
        numbers = measure.measure(name, steps(config, model, mesh)[name], model, chip, mesh, given["effort"])
        found["steps"][name] = numbers
        print(*report.lines(numbers), sep="\n", flush=True)
    if given["largest"]:
        found["largest"] = report.largest(config, model, mesh, chip, names, given["effort"], found["steps"])
        print(
            f"\nlargest batch       {found['largest']['prompts']} prompts a step fit, each with {config.align.rollouts} rollouts"
        )
    return found


def _model(config, preset):
    """The resolved config, and its policy's architecture."""
    from infalign_jax.models import config as model_config
    from infalign_jax.models import presets
    from infalign_jax.stages import settings
    from infalign_jax.stages.architecture import architecture

    config = config.copy_and_resolve_references()
    if not preset:
        config = settings.resolve(config, "not-chosen", files=False)
        return config, architecture(config, config.tokenizer.vocab_size)
    with config.unlocked():
        config.model.path, config.sft.steps = "", max(config.sft.steps, 1)
    config = settings.resolve(config, "not-chosen", files=False)
    how = {name: config.model[name] for name in model_config.HOW}
    if config.lora.rank:
        how["lora_scale"] = config.lora.alpha / config.lora.rank
    return config, presets.from_name(preset, **how)

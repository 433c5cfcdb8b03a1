"""The command line: flags to config to stages, nothing else."""

import importlib
import os
import sys

from absl import flags, logging

from infalign_jax import __version__, errors, pages, recipe
from infalign_jax.training import distributed, memory, preemption

STAGES = {
    "sft": "infalign_jax.stages.sft",
    "reward-model": "infalign_jax.stages.reward_model",
    "calibrate": "infalign_jax.stages.calibrate",
    "amortize": "infalign_jax.stages.amortize",
    "prefix-scorer": "infalign_jax.stages.prefix_scorer",
    "align": "infalign_jax.stages.align",
    "evaluate": "infalign_jax.stages.evaluate",
}
# Modules with `main(words)`, given the words after the command; each has its own --help.
TOOLS = {
    "status": "infalign_jax.status",
    "doctor": "infalign_jax.doctor",
    "generate": "infalign_jax.generate",
    "aot": "infalign_jax.aot",
    "score": "infalign_jax.score",
    "frontier": "infalign_jax.frontier_table",
    "study": "infalign_jax.study",
    "report": "infalign_jax.report",
}
COMMANDS = ("run", *STAGES, *TOOLS)
PAGE = """infalign: inference-aware alignment of language models

usage
  infalign [COMMAND] --config RECIPE --workdir DIR [--config.section.key=value ...]
  infalign COMMAND --help

commands
  run            every stage below, in order; the default
  sft            the reference policy, by next-token training on demonstrations
  reward-model   a reward model, and a judge, from preference pairs, where the config asks for learned ones
  calibrate      rollouts of the reference policy, scored: the table that calibrates rewards
  amortize       a head that predicts each prompt's table from the prompt; `run` includes it if config.amortize.enabled
  prefix-scorer  a head that says how an unfinished response ends; `run` includes it if config.prefix_scorer.enabled
  align          one policy per method of config.align.methods, each with its reward transform
  evaluate       win rates of all methods at equal KL, tables, figures and report.html
  status DIR     what is done in a workdir, what runs or failed, and how to go on
  aot            whether the steps fit a TPU slice, compiled for it without one: memory, collectives, bounds on time
  doctor         versions, devices, memory, disk, and what a config would run
  generate       responses of a policy, standard, best-of-N, worst-of-N or blockwise, with rewards, as JSON lines
  score          calibrated and transformed rewards, from files of rewards alone
  frontier       win rate against KL of every transform for a procedure, and the optimum, from theory
  study          a grid of task x method x KL x seed, resumable, shared among devices
  report DIR     every table and figure of a study, from its results

flags
  --config RECIPE          a Python file with get_config(), or the name of one that comes with the package: quickstart
  --workdir DIR            where checkpoints, tables and the report go
  --config.section.key=V   changes one key of the recipe: --config.align.steps=200
                           --config.align.methods="raw,exponential(10)"   --config.evaluate.best_of=2,4
                           infalign COMMAND --help lists the keys with their meaning and legal values
  --profile FIRST:LAST     traces these steps of every training loop, for XProf or Perfetto, into DIR/STAGE/profile
  --help, --version

A stage that is done is skipped; one that was interrupted goes on where it stopped, with the same command.

first steps
  infalign run --config configs/quickstart.py --workdir runs/quickstart
"""


def cli(command=None):
    """Entry point of the console script `infalign`: what a user got wrong ends with one sentence and exit status 2.

    `command`: what does the words of a command line instead of `main`, for modules that are commands of their own.
    """
    memory.keep_freed_memory()
    errors.quiet_readers()
    try:
        (command or main)(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, such as `head`, has enough
        sys.exit(1)
    except preemption.Preempted as notice:
        if distributed.is_first():
            print(f"infalign: {notice}", file=sys.stderr, flush=True)
        sys.exit(preemption.status())
    except (Exception, KeyboardInterrupt) as error:
        if distributed.joined():
            distributed.end(error)
        line = errors.sentence(error)
        if line is None:
            raise
        print(f"infalign: {line}", file=sys.stderr, flush=True)
        if isinstance(error, KeyboardInterrupt):
            os._exit(130)  # an orderly exit would tear down XLA in the middle of a compilation, and crash
        sys.exit(2)


def main(words):
    """Does what the words of a command line ask for."""
    helped = bool({"--help", "-h", "--helpfull"} & set(words))
    if helped and words[0] in ("run", *STAGES):
        return print(pages.page(words[0]), end="")
    if not words or (helped and words[0] not in TOOLS) or words[0] == "help":
        return print(PAGE, end="")
    if words == ["--version"]:
        return print(f"infalign {__version__}")
    flags.FLAGS(["infalign"])  # libraries read flags of their own, and want them parsed
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)  # the libraries tell every file they write
    if words[0] in TOOLS:
        return importlib.import_module(TOOLS[words[0]]).main(words[1:])
    config, workdir, words = recipe.parse(words)
    command, *rest = words or ["run"]
    if command in TOOLS:
        raise ValueError(f"command {command!r} must be the first word; see infalign --help")
    if command not in COMMANDS or rest:
        raise ValueError(f"command is {' '.join([command, *rest])!r}; legal are {', '.join(COMMANDS)}")
    if config is None or not workdir:
        raise ValueError(f"{'--config' if config is None else '--workdir'} is missing; see infalign --help")
    distributed.start()
    preemption.watch()
    run(command, config, workdir)


def run(command, config, workdir):
    """Runs one stage, or every stage for 'run'.

    Args:
      command: 'run' or a key of STAGES.
      config: ConfigDict with every key of configs/base.py.
      workdir: folder of the run.

    Raises:
      ValueError: bad input, in one sentence; nothing already computed is lost.
    """
    from infalign_jax.stages import order, settings
    from infalign_jax.training import compilation
    from infalign_jax.training import workdir as workdirs

    config = config.copy_and_resolve_references()
    if "tasks" in config:
        raise ValueError("--config names a study; run it with infalign study")
    with config.unlocked():
        config.amortize.enabled |= command == "amortize"  # to name an optional stage is to ask for it
        config.prefix_scorer.enabled |= command == "prefix-scorer"
    config = settings.resolve(config, workdir)
    names = list(STAGES) if command == "run" else [command]
    with workdirs.claim(config.to_dict()):
        compilation.use_cache()
        for name in names:
            order.check_before(config, name)
            state = order.state(config, name)
            _say(f"[{[*STAGES].index(name) + 1}/{len(STAGES)}] {name}" + (f": {state}" if state else ""))
            if not state:
                importlib.import_module(STAGES[name]).run(config)
        _say(order.whereabouts(config))


def _say(text):
    """Progress for people goes to stderr, like the bars."""
    import jax

    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)

"""The command line: flags to config to stages, nothing else."""

import importlib
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

STAGES = {
    "sft": "infalign_jax.stages.sft",
    "reward-model": "infalign_jax.stages.reward_model",
    "calibrate": "infalign_jax.stages.calibrate",
    "align": "infalign_jax.stages.align",
    "evaluate": "infalign_jax.stages.evaluate",
}
COMMANDS = ("run", *STAGES)
USAGE = """inference-aware alignment of language models

  infalign [run] --config FILE --workdir DIR [--config.section.key=value ...]
      every stage, in order: sft, reward-model, calibrate, align, evaluate
  infalign sft|reward-model|calibrate|align|evaluate --config FILE --workdir DIR [...]
      one stage

A stage that is done is skipped; one that was interrupted goes on where it stopped. configs/base.py explains every key.
"""

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: a Python file with get_config().", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, tables, report.")


def cli():
    """Entry point of the console script `infalign`: bad input ends with one sentence and exit status 2."""
    for flag, value in _config_arguments(sys.argv[1:]):
        path = pathlib.Path(value)
        if not path.is_file():
            sys.exit(f"infalign: {flag} is {value!r}, and there is no such file")
        # A recipe imports its neighbours as `configs.name`: the folder above its own is on the path.
        sys.path.insert(0, str(path.resolve().parent.parent))
    try:
        app.run(main, flags_parser=_parse)
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"infalign: {error}")


def _config_arguments(words):
    """The values given to `--config`, as (flag, value)."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in ("--config", "-config"):
            yield flag, value if equals else after


def _parse(argv):
    app.usage(shorthelp=True) if len(argv) == 1 else None
    return flags.FLAGS(argv)


def main(argv):
    """Runs the stage named on the command line, or all of them."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the libraries tell every file they write
    command, *rest = argv[1:] or ["run"]
    if command not in COMMANDS or rest:
        raise ValueError(f"command is {' '.join(argv[1:])!r}; legal are {', '.join(COMMANDS)}")
    if _CONFIG.value is None or not _WORKDIR.value:
        raise ValueError(f"{'--config' if _CONFIG.value is None else '--workdir'} is missing; see infalign --help")
    run(command, _CONFIG.value, _WORKDIR.value)


def run(command, config, workdir):
    """Runs one stage, or every stage for 'run'.

    Args:
      command: 'run' or a key of STAGES.
      config: ConfigDict with every key of configs/base.py.
      workdir: folder of the run.

    Raises:
      ValueError: bad input, in one sentence; nothing already computed is lost.
    """
    from infalign_jax.stages import settings
    from infalign_jax.training import compilation
    from infalign_jax.training import workdir as workdirs

    config = settings.resolve(config, workdir)
    workdirs.claim(config.to_dict())
    compilation.use_cache()
    for name in STAGES if command == "run" else [command]:
        importlib.import_module(STAGES[name]).run(config)

"""A study: a grid of task x method x KL x seed, each cell an ordinary run, resumable and shared among devices."""

import importlib
import itertools
import json
import os
import pathlib
import sys
import time
from typing import NamedTuple

from infalign_jax import errors, flags, recipe

PAGE = """infalign study --config FILE --workdir DIR [--shard=I/N] [--retry] [--config.key=value ...]

  Runs every cell of a study that has no result yet: one method, trained on one task for one KL, with one seed of the
  whole pipeline (data, reference policy, calibration, training, evaluation). Cells of a task and seed share the stages
  before align. Each leaves DIR/cells/NAME.json; `infalign report DIR` makes tables and figures of them. All methods of
  the first KL and seed come first, then the next seed, then the next KL: what has been run at any time is balanced.
  The same command may be started several times at once: each takes cells that no other is at.

flags
  --config FILE   a study, a Python file with get_config(), such as configs/study_quickstart.py; --config.kls=0.5,1 or
                  --config.tasks.hh.data.path=FOLDER change its keys
  --workdir DIR   where runs and results go; the same command goes on where it stopped
  --shard=I/N     only the I-th of N shares of the methods (1 to N): for folders without file locks, such as buckets
  --retry         runs cells again that failed
"""
KEYS = ("tasks", "methods", "kls", "seeds", "procedures", "learning_rates", "tune_kl", "tune_seed")
SHARED = ("sft", "reward-model", "calibrate", "amortize", "prefix-scorer")
_BUSY = "is in use by"


class Cell(NamedTuple):
    """One run of a study. `rate` is the learning rate it tries in the search for the best one, None in the grid itself."""

    task: str
    method: str
    kl: float
    seed: int
    rate: float | None = None

    @property
    def name(self):
        """A file name that no other cell of the study has."""
        method = "".join(c if c.isalnum() or c in "-_." else "_" for c in self.method).strip("_")
        tail = "" if self.rate is None else f"-tune_{self.rate:g}"
        return f"{self.task}-{method}-kl_{self.kl:g}-seed_{self.seed}{tail}"


def main(words):
    """The command."""
    if {"--help", "-h"} & set(words):
        return print(PAGE, end="")
    own = [word for word in words if word.startswith(("--shard", "--retry"))]
    given = flags.parse("infalign study", own, {"shard": ("1/1", str), "retry": (False, bool)})
    study, workdir, rest = recipe.parse([word for word in words if word not in own])
    if study is None or not workdir or rest:
        raise ValueError("study needs --config and --workdir and no other words; see infalign study --help")
    check_keys(study)
    check(study)
    failed = run(study, pathlib.Path(workdir), shard(given["shard"]), given["retry"])
    for name, error in failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)


def check_keys(study):
    """Raises ValueError unless a config has the keys of a study."""
    if wrong := sorted(set(study) ^ set(KEYS)):
        raise ValueError(f"--config names no study: one has the keys {', '.join(KEYS)}; see {', '.join(wrong)}")


def shard(text):
    """(I, N) of 'I/N'. Raises ValueError unless 1 <= I <= N."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--shard is {text!r}; it must be I/N with 1 <= I <= N, such as 1/4")
    return int(first), int(last)


def groups(study):
    """The cells by task and method, the search for a learning rate first: what one process must do in order."""
    found = []
    for task, method in itertools.product(study.tasks, study.methods):
        rates = study.learning_rates if len(study.learning_rates) > 1 else ()
        tune = [Cell(task, method, study.tune_kl, study.tune_seed, rate) for rate in rates]
        found.append(tune + [Cell(task, method, kl, seed) for seed in study.seeds for kl in study.kls])
    return found


def in_order(study, shares):
    """The cells of some groups: searches first, then KL by KL, seed by seed, so that a study cut short is balanced."""
    seeds, kls = list(study.seeds), list(study.kls)

    def place(cell):
        return (0, 0, 0) if cell.rate is not None else (1, kls.index(cell.kl), seeds.index(cell.seed))

    return sorted(itertools.chain(*shares), key=place)


def cell_config(study, cell, rate=None):
    """The recipe of a cell: the task's, with the cell's method, KL, seed and learning rate.

    '{seed}' in a task's reward and judge stands for the seed: rewards that belong to a seed's data are named so.
    """
    config = study.tasks[cell.task].copy_and_resolve_references()
    with config.unlocked():
        config.seed, config.align.seeds = cell.seed, (0,)
        config.align.methods, config.align.target_kl = (cell.method,), float(cell.kl)
        config.align.learning_rate = rate or cell.rate or config.align.learning_rate
        config.reward, config.judge = (text.replace("{seed}", str(cell.seed)) for text in (config.reward, config.judge))
    return config


def check(study):
    """Refuses a study before it runs: every cell's recipe must be legal.

    Raises:
      ValueError: names the cell and what is wrong.
    """
    from infalign_jax.core import procedures
    from infalign_jax.sampling.blockwise import block_sizes
    from infalign_jax.stages import settings

    for key in ("tasks", "methods", "kls", "seeds", "procedures"):
        if not len(study[key]):
            raise ValueError(f"config.{key} of the study is empty; give at least one")
    for name, (task, config) in itertools.product(study.procedures, study.tasks.items()):
        sizes = block_sizes(name)
        if sizes and not config.prefix_scorer.enabled:
            raise ValueError(f"procedure {name} needs config.prefix_scorer.enabled of task {task}, which is False")
        most = 1 if sizes else procedures.from_name(name).draws or 1
        if most > config.evaluate.samples:
            raise ValueError(f"procedure {name} needs config.evaluate.samples of task {task} to be at least {most}")
    cells = list(itertools.chain(*groups(study)))
    if len({cell.name for cell in cells}) < len(cells):
        raise ValueError("two cells of the study would share a name; give every method, KL and seed once")
    for cell in {(cell.task, cell.method, cell.kl): cell for cell in cells}.values():  # seeds are all alike
        try:
            settings.resolve(cell_config(study, cell), "x")
        except ValueError as error:
            raise ValueError(f"cell {cell.name}: {error}") from error


def run(study, folder, share=(1, 1), retry=False):
    """Runs the cells of a share of the study that have no result, and waits for those that another process is at.

    Returns {name: error} of those that failed.

    Raises:
      ValueError: `folder` is a file, or holds another study.
    """
    from infalign_jax.reporting.progress import Progress
    from infalign_jax.training import compilation, workdir

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"workdir {folder} is a file; it must be a folder")
    _same_study(study, folder / "study.json")
    compilation.use_cache()
    mine = in_order(study, groups(study)[share[0] - 1 :: share[1]])
    left, failed, before = mine, {}, None
    with Progress(len(mine), "study") as bar:
        while left:
            todo, left = left, []
            for cell in todo:
                path, before = folder / "cells" / f"{cell.name}.json", _forget_programs(cell, before)
                if not path.exists() or (retry and workdir.read_json(path)["status"] == "failed"):
                    if (made := attempt(study, cell, folder)) is None:
                        left.append(cell)  # to be looked at again, for the other process may be killed
                        continue
                    workdir.write_json(path, made)
                if (result := workdir.read_json(path))["status"] == "failed":
                    failed[cell.name] = result["error"]
                bar.update(
                    sum((folder / "cells" / f"{c.name}.json").exists() for c in mine),
                    {"cell": cell.name, "failed": len(failed)},
                )
            if left == todo:
                time.sleep(2)
    return failed


def _forget_programs(cell, before):
    """Drops compiled programs where the next cells share few with the last ones: they would pile up over a grid."""
    import jax

    here = cell.task, cell.kl, cell.seed
    if before not in (None, here):
        jax.clear_caches()
    return here


def attempt(study, cell, folder):
    """The result of a cell: what was measured, or what went wrong. An interruption is no result.

    None if another process is at it, or at the search for its learning rate.
    """
    told = {**cell._asdict(), "name": cell.name}
    try:
        rate = cell.rate or chosen_rate(study, cell, folder)
        config = cell_config(study, cell, rate)
        measured = run_cell(config, study.procedures, folder, cell)
        return {**told, "status": "done", "learning_rate": config.align.learning_rate, **measured}
    except Exception as error:
        if _BUSY in str(error):
            return None
        sentence = errors.sentence(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        return {**told, "status": "failed", "error": sentence}


def chosen_rate(study, cell, folder):
    """The learning rate whose tuning cell has the highest win rate under the training reward.

    The win rate is that at the procedure a method is named after, such as optimal(best_of(4)), or else the mean over all. Without
    a search it is the study's one rate; None, the task's own, where the study gives none.

    Raises:
      ValueError: there were tuning cells and all failed, or some have no result yet.
    """
    from infalign_jax.training import workdir

    tuned = next(g for g in groups(study) if g[0].task == cell.task and g[0].method == cell.method)
    paths = [folder / "cells" / f"{c.name}.json" for c in tuned if c.rate is not None]
    if not paths:
        return study.learning_rates[0] if study.learning_rates else None
    if not all(path.exists() for path in paths):
        raise ValueError(f"the search for a learning rate of {cell.method} {_BUSY} another process")
    results = [workdir.read_json(path) for path in paths]
    finished = [result for result in results if result["status"] == "done"]
    if not finished:
        raise ValueError(f"no learning rate of {cell.method} on {cell.task} could be tried: {results[0]['error']}")

    def quality(result):
        wins = result["win_rates"]["train"]
        own = cell.method.partition("(")[2].removesuffix(")")
        deciding = [wins[own]] if own in wins else wins.values()
        return sum(sum(win) / len(win) for win in deciding) / len(deciding)

    return max(finished, key=quality)["rate"]


def run_cell(config, procedures, folder, cell):
    """Trains and measures one cell in a workdir of its own that shares what comes before stage align."""
    from infalign_jax.stages import align, settings
    from infalign_jax.stages import cell as cells
    from infalign_jax.training import workdir

    base = folder / "runs" / f"{cell.task}-seed_{cell.seed}"
    root = folder / "runs" / cell.name
    started, worked = time.monotonic(), time.process_time()
    _prepare(settings.resolve(config, base))
    _link(base, root)
    config = settings.resolve(config, root)
    with workdir.claim(config.to_dict()):
        align.run(config)
        # Learning rates are chosen on training prompts: the held-out ones are for the grid.
        measured = cells.measure(config, procedures, "test" if cell.rate is None else "train")
    spent = {"cell": time.monotonic() - started, "cell_cpu": time.process_time() - worked}
    return {**measured, "seconds": {**measured["seconds"], **spent}}


def _prepare(config):
    """Runs what comes before stage align, or waits while another process does."""
    from infalign_jax import main as command
    from infalign_jax.stages import order
    from infalign_jax.training import workdir

    while any(order.missing(config, stage) for stage in SHARED):
        try:
            with workdir.claim(config.to_dict()):
                for stage in SHARED:
                    if order.missing(config, stage):
                        importlib.import_module(command.STAGES[stage]).run(config)
        except ValueError as error:
            if _BUSY not in str(error):
                raise
            time.sleep(2)


def _link(base, root):
    """Makes `root` a workdir whose data, tokeniser and finished stages are those of `base`."""
    root.mkdir(parents=True, exist_ok=True)
    for source in base.iterdir():
        target = root / source.name
        if source.name not in ("config.json", "run.lock", "align", "evaluate") and not target.exists():
            target.symlink_to(os.path.relpath(source, root))


def _same_study(study, path):
    from infalign_jax.training import workdir

    record = json.loads(json.dumps(study.to_dict()))
    if path.exists():
        changed = workdir.differences(workdir.read_json(path), record)
        # More methods, KLs, seeds or tasks leave the cells that are done as they are.
        changed = [
            line for line in changed if not line.startswith(("methods:", "kls:", "seeds:")) and "None ->" not in line
        ]
        if changed:
            raise ValueError(f"{path.parent} holds another study ({'; '.join(changed)}); choose another --workdir")
    workdir.write_json(path, record)

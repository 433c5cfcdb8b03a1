"""What is done in a workdir, what runs, failed or was interrupted, and how to go on: `infalign status DIR`."""

import shlex

from etils import epath

from infalign_jax import recipe
from infalign_jax.reporting import metrics
from infalign_jax.reporting.progress import describe, duration, number
from infalign_jax.stages import order
from infalign_jax.training import workdir as workdirs

PAGE = """infalign status DIR

  Says for each stage in the workdir DIR whether it is done, running, interrupted or not begun, with its last numbers;
  whether a process is at work there; how the last run ended; and the command that goes on. Nothing is changed.
"""
# The numbers of a finished stage worth a line, in this order.
_SHOWN = ("loss", "perplexity", "accuracy", "held_out_accuracy", "rollouts", "reward", "kl", "calibrated", "truncated")


def main(words):
    """The command: prints `lines` of the workdir named."""
    if {"--help", "-h"} & set(words):
        return print(PAGE, end="")
    _, workdir, words = recipe.parse(words)
    if len([*words, *filter(None, [workdir])]) != 1:
        raise ValueError("status needs one workdir: infalign status DIR")
    print(*lines(workdir or words[0]), sep="\n")


def lines(workdir):
    """The report on a workdir, as lines of text.

    Raises:
      ValueError: no such folder, or one that no run has made; a damaged record in it, named.
    """
    root = epath.Path(workdir)
    if not (root / "config.json").exists():
        raise ValueError(f"{workdir} is no workdir: it holds no config.json; runs make one with --workdir {workdir}")
    config, run = workdirs.read_json(root / "config.json"), workdirs.last_run(root)
    alive, rows = bool(run and run["alive"]), []
    for stage in order.STAGES:
        found = order.outputs(config, stage)
        rows += [(title, *_state(root / folder, config)) for title, folder in found.items()]
        rows += [] if found else [(stage, "not needed", "")]
    open_rows = [i for i, (_, state, _) in enumerate(rows) if state not in ("done", "not needed")]
    for i in open_rows if alive else ():
        if i == open_rows[0] or rows[i][1] == "interrupted":  # the first is at work also before it has written a number
            rows[i] = (rows[i][0], "running", rows[i][2])
    width = max(len(title) for title, _, _ in rows)
    table = [f"  {title:<{width}}  {state:<12} {text}".rstrip() for title, state, text in rows]
    return [f"workdir {root}", *table, "", *_ending(run, not open_rows)]


def _state(folder, config):
    """(word, numbers) of one output: done, interrupted or not begun."""
    result = workdirs.done(folder)
    if result is not None:
        numbers = {name: result[name] for name in _SHOWN if isinstance(result.get(name), (int, float))}
        seconds = result.get("stage_seconds")
        return "done", " · ".join(filter(None, [duration(seconds) if seconds else "", describe(numbers)]))
    if parts := sorted((folder / "parts").glob("*.npz")) if (folder / "parts").exists() else []:
        return "interrupted", f"{len(parts)} calls of {config['calibrate']['prompts_per_call']} prompts are saved"
    if rows := metrics.read(folder):
        section = {"judge": "reward_model"}.get(folder.name, folder.name)
        steps = config[section if section in config else "align"]["steps"]
        last = {name: rows[-1][name] for name in _SHOWN if name in rows[-1]}
        return "interrupted", f"step {number(rows[-1]['step'] + 1)} of {steps} · {describe(last)}"
    return "interrupted" if folder.exists() else "not begun", ""  # several methods may be compiling their first step


def _ending(run, finished):
    """What the last run is doing or how it ended, and what to do next."""
    if run is None:
        return ["everything is done" if finished else "go on with the same --config and --workdir"]
    words = run.get("command")
    command = shlex.join(["infalign", *words]) if words else "infalign run with the same --config and --workdir"
    process = f"process {run.get('pid', '?')} on {run.get('host', '?')}, begun {run.get('started', '?')}"
    if run["alive"]:
        return [f"running: {process}", f"  {command}"]
    if finished:
        return ["everything is done"]
    ended = run.get("ended")
    why = "was stopped: killed, or its machine went down" if ended is None else f"ended: {ended}"
    return [f"the last run ({process}) {why}", "go on with", f"  {command}"]

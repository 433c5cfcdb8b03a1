"""Run as a program: `faulty.py FAULT PROCESS STEP WORDS ...` is `infalign WORDS ...` in which something goes wrong.

It goes wrong on process PROCESS, after STEP steps of the first training loop or in the checkpoint made then:
  term           SIGTERM, as when a machine is about to be taken away
  kill           kill -9, between checkpoints
  kill_in_save   kill -9 while a checkpoint is being written, all processes having begun to
  kill_at_end    kill -9 when all of a checkpoint is written but not yet declared whole
  full_disk      no file may grow any further
  none           nothing
"""

import os
import resource
import signal
import sys
import time

FAULT, PROCESS, STEP = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
MINE = int(os.environ.get("INFALIGN_DISTRIBUTED", "").rpartition(",")[2] or 0) == PROCESS
sys.argv = ["infalign", *sys.argv[4:]]

from infalign_jax import main
from infalign_jax.training import checkpoints, preemption

noticed, save, calls, managers = preemption.noticed, checkpoints.save, 0, []


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def noticed_or_worse():
    """Asked once a step."""
    global calls
    calls += 1
    if FAULT == "term":
        time.sleep(0.3)  # a step takes a while
    if MINE and calls == STEP:
        {"term": lambda: os.kill(os.getpid(), signal.SIGTERM), "kill": die_between_saves}.get(FAULT, lambda: None)()
    return noticed()


def die_between_saves():
    for manager in managers:  # steps are fast here: the last save may be on its way
        manager.wait_until_finished()
    die()


def save_or_worse(manager, step, *rest):
    managers.append(manager)
    if MINE and step == STEP and FAULT == "full_disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    if MINE and step == STEP and FAULT == "kill_at_end":
        from orbax.checkpoint._src.path import atomicity

        for kind in (atomicity.AtomicRenameTemporaryPath, atomicity.CommitFileTemporaryPath):
            kind.finalize = lambda *_, **__: die()
    save(manager, step, *rest)
    if MINE and step == STEP and FAULT == "kill_in_save":
        die()


preemption.noticed, checkpoints.save = noticed_or_worse, save_or_worse
main.cli()

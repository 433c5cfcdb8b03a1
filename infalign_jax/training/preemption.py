"""Notices that this machine is about to be taken away (SIGTERM): save, end with status 0, go on later."""

import itertools
import os
import signal

_polls = itertools.count()
_asked = False


class Preempted(Exception):
    """Raised when all that a run needs to go on is saved; the command line ends with `status()`."""


def status():
    """The exit status after a notice: 0, or INFALIGN_PREEMPTED_STATUS for schedulers that start again what failed."""
    return int(os.environ.get("INFALIGN_PREEMPTED_STATUS") or 0)


def watch():
    """Turns SIGTERM into a notice from now on. A second one ends the process.

    With `jax.distributed` its own service catches the signal, on whichever process it arrives, and tells the others.
    """
    import jax

    if jax.distributed.is_initialized():
        return

    def notice(number, _):
        global _asked
        _asked = True
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, notice)


def noticed():
    """Whether to save and stop now; the same answer on every process, which must all ask equally often."""
    import jax

    global _asked
    if jax.distributed.is_initialized():
        from jax.experimental import multihost_utils

        # The service says so once, at a call that it has chosen for all processes.
        _asked = multihost_utils.reached_preemption_sync_point(next(_polls)) or _asked
    return _asked


def stop(where):
    """Raises `Preempted` with what to say."""
    raise Preempted(
        f"stopped on a notice of preemption, SIGTERM ({where}); everything is saved, the same command goes on"
    )

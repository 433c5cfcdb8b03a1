"""Errors in one sentence: what a user can cause is said shortly; a bug keeps its traceback."""

import errno
import os
import sys

INTERRUPTED = "interrupted; the same command goes on where it stopped"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sentence(error):
    """The line that tells a user what went wrong, or None for an error whose traceback is needed.

    ValueError and FloatingPointError are bad input if our own code raised them, and bugs if a library did. OSErrors are
    about the machine: a full disk, a missing right. So are devices or hosts out of memory.
    """
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, (ValueError, FloatingPointError)) and raised_here(error):
        return text
    if isinstance(error, OSError):
        return describe_os_error(error)
    if full := _disk_full(text):
        return full
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in text):
        return (
            f"out of memory ({text[:200]}); lower a batch size, config.align.rollouts or the model, or use more devices"
        )
    return None


def describe_os_error(error):
    """An OSError with the file it is about, and for a full disk what to do."""
    files = [os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, (str, os.PathLike))]
    text = ": ".join([error.strerror or " ".join(str(error).split()) or type(error).__name__, *files])
    return f"{text}; free some space and start again: what was saved is kept" if error.errno in _FULL else text


def raised_here(error):
    """Whether the code that raised an error is this package's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    module = trace.tb_frame.f_globals
    # A module that is a command of its own is called __main__, and only its package says whose it is.
    return (module.get("__package__") or module.get("__name__", "")).split(".")[0] == "infalign_jax"


def quiet_readers():
    """Drops what parallel reads of a damaged checkpoint say when the first of them has failed: that one is reported."""
    show = sys.unraisablehook

    def hook(raised):
        if not (isinstance(raised.exc_value, RuntimeError) and str(raised.exc_value) == "Event loop is closed"):
            show(raised)

    sys.unraisablehook = hook


def _disk_full(text):
    """Storage libraries wrap the operating system's error in their own: its words remain."""
    for code in _FULL:
        if os.strerror(code) in text:
            return f"{os.strerror(code)} ({text[:200]}); free some space and start again: what was saved is kept"
    return None

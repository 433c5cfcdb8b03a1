"""The host's allocator: on CPUs, XLA's buffers come from it and go back to it at every step."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # numbers of glibc's malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory():
    """Tells glibc to keep freed memory for the next step instead of handing it back to the system.

    Otherwise every step faults its pages in again: a fifth of the quickstart's CPU time. Must be called before threads
    start, whose own arenas are always trimmed. Does nothing on systems without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for option, value in ((_ARENA_MAX, 1), (_TRIM_THRESHOLD, _LARGEST), (_MMAP_THRESHOLD, _LARGEST)):
        if mallopt is not None:
            mallopt(option, value)

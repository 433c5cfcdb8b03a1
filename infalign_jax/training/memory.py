"""The host's allocator: on CPUs, XLA's buffers come from it and go back to it at every step."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST = -1, -3, 2**31 - 1


def keep_freed_memory():
    """Tells glibc to keep freed memory for the next step instead of handing it back to the system.

    Otherwise every step faults its pages in again: measured on a small train step, half the wall time. Does nothing on
    systems without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
        if mallopt is not None:
            mallopt(option, _LARGEST)

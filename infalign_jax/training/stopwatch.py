"""Where the time of a step goes, and how much memory it took: read off where the host waits anyway."""

import resource
import sys
import time

import jax


class Stopwatch:
    """Seconds by step and phase.

    Devices work while the host goes on, so a phase ends where its result is first waited for. All such waits are on
    something the next line needs: measuring adds no wait of its own.
    """

    def __init__(self):
        self.rows, self.last = {}, time.perf_counter()

    def skip(self):
        """Whatever passed since the last call belongs to no phase."""
        self.last = time.perf_counter()

    def lap(self, step, phase):
        """Adds the time since the last call to a phase of a step."""
        now, row = time.perf_counter(), self.rows.setdefault(step, {})
        name = f"seconds_{phase}"
        row[name] = row.get(name, 0.0) + now - self.last
        self.last = now

    def take(self, step):
        """{'seconds_PHASE': seconds} of a step; what is known of earlier ones is dropped."""
        row = self.rows.get(step, {})
        self.rows = {later: found for later, found in self.rows.items() if later > step}
        return row


def memory_peaks():
    """High-water marks in GiB since the process began: of its fullest device (where the platform counts) and of the host."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in statistics if "peak_bytes_in_use" in found]
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {**({"device_memory_peak_gib": max(peaks) / 2**30} if peaks else {}), "host_memory_peak_gib": host / 2**30}

"""Progress of a host loop: on a terminal a bar with the numbers that matter, elsewhere a line now and then."""

import sys
import time

FIRST_INTERVAL = 10.0  # seconds between plain lines; grows to 2 % of the time spent, so that long runs keep short logs
SUFFIXES = ((1e9, "G"), (1e6, "M"), (1e4, "k"))


def number(value):
    """A value in about four characters: 12.3k, 0.483, 3e-04, 12; text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int) and abs(value) < 1e4:
        return str(value)
    value = float(value)
    for size, suffix in SUFFIXES:
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.3g}{suffix}"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def describe(numbers):
    """'loss 1.234 · kl 0.480 · beta 0.767'."""
    if "kl" in numbers:  # of a policy from itself it is a rounding error of either sign
        numbers = {**numbers, "kl": round(float(numbers["kl"]), 6) + 0.0}
    return " · ".join(f"{name} {number(value)}" for name, value in numbers.items())


def duration(seconds):
    """'0:07', '12:34', '3:05:00'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Context manager around a loop of `total` steps that begins at `start` (a resumed run) and reports on stderr.

    `update(step, numbers)` says that `step` steps are done; numbers are floats, ints or text by name. On a terminal
    there is one tqdm bar with the time left; elsewhere a plain line first, last, and every ten seconds or 2 % of the
    time spent, whichever is longer. `quiet=True` prints nothing; `stream` and `clock` are for tests.

    ValueError when total or start is negative or start exceeds total.
    """

    def __init__(self, total, title, start=0, *, quiet=False, stream=None, clock=time.monotonic):
        if not 0 <= start <= total:
            raise ValueError(f"progress of {title!r}: start is {start}; it must lie between 0 and total = {total}")
        self.total, self.title, self.start, self.step = total, title, start, start
        self.stream, self.clock = stream or sys.stderr, clock
        self.quiet, self.bar, self.numbers = quiet, None, {}
        self.began = self.shown = clock()
        self.printed = self.first = None  # the step last printed; (time, step) of the first update

    def __enter__(self):
        self.began = self.shown = self.clock()
        if not self.quiet and self.stream.isatty():
            from tqdm import tqdm

            layout = "{desc} {percentage:3.0f}% ▕{bar:12}▏ {n_fmt}/{total_fmt} · {elapsed} < {remaining}{postfix}"
            self.bar = tqdm(
                total=self.total,
                initial=self.start,
                desc=self.title,
                file=self.stream,
                bar_format=layout,
                dynamic_ncols=True,
                mininterval=0.2,
            )
        return self

    def update(self, step, numbers=None):
        """Reports that `step` steps of `total` are done, with the latest numbers."""
        self.step, self.numbers = step, numbers or self.numbers
        self.first = self.first or (self.clock(), step)
        if self.bar is not None:
            self.bar.set_postfix_str(describe(self.numbers), refresh=False)
            self.bar.update(step - self.bar.n)
        elif not self.quiet and (self.printed is None or step >= self.total or self._due()):
            self._print_line()

    def write(self, text):
        """Prints text of its own (a table of samples, a warning) without tearing the bar."""
        if self.bar is not None:
            self.bar.write(text, file=self.stream)
        elif not self.quiet:
            print(text, file=self.stream, flush=True)

    def _due(self):
        now = self.clock()
        return now - self.shown >= max(FIRST_INTERVAL, 0.02 * (now - self.began))

    def _print_line(self):
        self.shown, self.printed = self.clock(), self.step
        spent, text, left = self.shown - self.began, describe(self.numbers), ""
        began, first = self.first  # the first step compiles: it says nothing about the others
        if first < self.step < self.total:
            left = f", {duration((self.shown - began) / (self.step - first) * (self.total - self.step))} left"
        line = f"{self.title} {self.step}/{self.total} · {duration(spent)}{left}" + (f" · {text}" if text else "")
        print(line, file=self.stream, flush=True)

    def __exit__(self, kind, error, trace):
        if self.bar is not None:
            self.bar.refresh()
            self.bar.close()
        elif not self.quiet and self.printed is not None and self.printed != self.step:
            self._print_line()

"""While a stage runs: progress on a terminal and in a log, and metrics of which no step is written twice."""

import io
import json
import sys

import numpy as np
import pytest

from infalign_jax.reporting import metrics, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def _loop(stream, steps, seconds, compile_seconds=0.0, **options):
    now = [0.0]
    with progress.Progress(steps, "align", stream=stream, clock=lambda: now[0], **options) as bar:
        for step in range(options.get("start", 0) + 1, steps + 1):
            now[0] += seconds + (0 if bar.first else compile_seconds)
            bar.update(step, {"loss": 1.5 / step, "kl": 0.48 if step > 1 else -2e-9, "tokens": 12345.0})
    return stream.getvalue()


def test_plain_lines_come_first_last_and_now_and_then():
    lines = _loop(io.StringIO(), 100, 1.0).splitlines()
    assert lines[0].startswith("align 1/100 · 0:01 · loss 1.500 · kl 0.000 · tokens 12.3k")
    assert lines[1].startswith("align 11/100 · 0:11, 1:29 left · ")
    assert lines[-1].startswith("align 100/100 · 1:40 · ") and len(lines) == 11
    assert len(_loop(io.StringIO(), 10_000, 1.0).splitlines()) < 300  # 2 % of the time spent: long logs stay short


@pytest.mark.parametrize("compile_seconds", [0.0, 300.0])
def test_time_left_counts_the_steps_of_this_run_and_no_compilation(compile_seconds):
    lines = _loop(io.StringIO(), 100, 2.0, compile_seconds, start=90).splitlines()
    assert lines[0].startswith("align 91/100 · ") and "left" not in lines[0]
    assert lines[1].startswith("align 96/100 · ") and ", 0:08 left" in lines[1]


def test_an_interrupted_loop_says_where_it_stopped():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), progress.Progress(9, "sft", stream=stream, clock=lambda: 0.0) as bar:
        bar.update(1)
        bar.update(2)
        raise KeyboardInterrupt
    assert [line.split(" · ")[0] for line in stream.getvalue().splitlines()] == ["sft 1/9", "sft 2/9"]


def test_terminal_gets_one_bar_and_quiet_gets_nothing():
    shown = _loop(Terminal(), 5, 1.0)
    assert "align 100%" in shown and "5/5" in shown and "kl 0.480" in shown and shown.count("\n") == 1
    assert _loop(Terminal(), 5, 1.0, quiet=True) == "" == _loop(io.StringIO(), 5, 1.0, quiet=True)


@pytest.mark.parametrize("start", [-1, 11])
def test_progress_refuses_an_impossible_start(start):
    with pytest.raises(ValueError, match=f"start is {start}"):
        progress.Progress(10, "sft", start)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.4834, "0.483"), (12345, "12.3k"), (3e-4, "3e-04"), (12, "12"), (5.2e9, "5.2G"), (123.4, "123.4"), ("x", "x")],
)
def test_numbers_are_short(value, words):
    assert progress.number(value) == words


def test_metrics_hold_every_step_once(tmp_path):
    with metrics.MetricsWriter(tmp_path) as writer:
        for step in range(6):
            writer.write(step, {"loss": np.float32(step), "steps": 3})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    assert [row["step"] for row in metrics.read(tmp_path)] == list(range(6))
    with metrics.MetricsWriter(tmp_path, start=4) as writer:
        for step in range(4, 8):
            writer.write(step, {"loss": float("nan") if step == 7 else 10.0 + step})
    rows = metrics.read(tmp_path)
    assert [row["step"] for row in rows] == list(range(8))
    assert [row["loss"] for row in rows[:7]] == [0, 1, 2, 3, 14, 15, 16] and np.isnan(rows[7]["loss"])
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_metrics_refuse_a_broken_line_and_keep_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\nnot json\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl line 2"):
        metrics.MetricsWriter(tmp_path, start=2)
    assert path.read_text().count("\n") == 3


def test_tensorboard_only_when_asked_and_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    metrics.MetricsWriter(tmp_path / "off").close()
    with pytest.raises(ValueError, match=r"tensorboardX is not installed"):
        metrics.MetricsWriter(tmp_path / "on", tensorboard=True)
    assert not (tmp_path / "on").exists()


def test_tensorboard_events_hold_the_scalars(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    with metrics.MetricsWriter(tmp_path, start=3, tensorboard=True) as writer:
        writer.write(3, {"loss": 0.25})
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), []
    while data:  # each record: length (8 bytes), checksum (4), payload, checksum (4)
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]
    assert found == [(3, "loss", 0.25)]

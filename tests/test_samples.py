"""Sampled responses while a policy is trained: what is kept, what is shown, and that the numbers are those of training."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax.core.calibration import calibrate
from infalign_jax.reporting import samples
from infalign_jax.reporting.visible import visible
from infalign_jax.training.accumulation import accumulate


def rows(count, prompt="p", text="a response"):
    numbers = [{"reward": float(i), "calibrated": i / 10, "advantage": i - 2.0} for i in range(count)]
    return [{"prompt": prompt, "response": f"{text} {i}", **row} for i, row in enumerate(numbers)]


def test_a_step_is_kept_once_however_often_resumed(tmp_path):
    for step in (0, 50, 100, 50):  # resumed from a checkpoint before 100
        samples.add(tmp_path, step, rows(2, text=f"of step {step}"))
    assert [row["step"] for row in samples.read(tmp_path)] == [0, 0, 50, 50]
    assert samples.read(tmp_path)[0] == {"step": 0, **rows(2, text="of step 0")[0]}
    assert samples.read(tmp_path / "nowhere") == []


def test_texts_of_any_kind_come_back(tmp_path):
    text = "two\nlines \u2028 \u202e \x1b[31m 漢字 🙂 \ud800"
    samples.add(tmp_path, 0, rows(1, prompt=text))
    assert samples.read(tmp_path)[0]["prompt"] == text


def test_the_table_shows_the_highest_and_the_lowest_in_order():
    lines = samples.table(rows(9), width=60).splitlines()
    assert lines[0].split() == ["reward", "u", "advantage", "response", "to:", "p"]
    assert [float(line.split()[0]) for line in lines[1:]] == [8.0, 5.0, 3.0, 0.0]
    assert lines[1].split()[1:3] == ["0.800", "6.000"]
    assert len(samples.table(rows(2)).splitlines()) == 3


def test_the_table_is_as_wide_as_it_may_be_and_steers_no_terminal():
    hostile = "\x1b[2J\x1b]0;title\x07\x9b31m two\nlines\r\t \u202e" + "long " * 100
    table = samples.table(rows(3, prompt=hostile, text=hostile), width=80)
    assert max(map(len, table.splitlines())) <= 80 and len(table.splitlines()) == 4
    assert not set(table) & set("\x1b\x07\x9b\r\t\u202e")


def test_visible_keeps_what_it_is_asked_to_keep():
    assert visible("a\n\tb\x00", keep="\n\t") == "a\n\tb␀" and visible(None) == "None"


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_what_belongs_to_one_rollout_stays_with_it_over_microbatches(parts):
    def gradient(variables, batch):
        return variables, {"mean": batch["x"].mean(), "responses": {"x": batch["x"]}}

    x_BR = jnp.arange(24.0).reshape(6, 4)
    _, metrics = accumulate(gradient, {"w": jnp.zeros(2)}, {"x": x_BR}, parts)
    np.testing.assert_array_equal(metrics["responses"]["x"], x_BR)
    assert float(metrics["mean"]) == pytest.approx(11.5)


def check_folder(folder, rollouts, steps):
    """What a run left: every shown step, u that the table gives, and leave-one-out advantages, which sum to zero."""
    kept = samples.read(folder)
    assert sorted({row["step"] for row in kept}) == steps and len(kept) == 2 * rollouts * len(steps)
    prompts = json.loads((folder.parents[2] / "calibrate" / "prompts.json").read_text())["prompts"]
    with np.load(folder.parents[2] / "calibrate" / "table.npz") as table:
        rewards_PK = table["rewards"]
    for first in range(0, len(kept), rollouts):
        group = kept[first : first + rollouts]
        (prompt,) = {row["prompt"] for row in group}
        u_R = calibrate([row["reward"] for row in group], rewards_PK[prompts.index(prompt)])
        np.testing.assert_allclose([row["calibrated"] for row in group], u_R, atol=1e-6)
        assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-4)
        assert any(row["advantage"] for row in group) and all(isinstance(row["response"], str) for row in group)

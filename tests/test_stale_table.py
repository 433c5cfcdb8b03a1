"""A table of another policy: the closed form against quadrature by hand, the measurement against it, and the command."""

import numpy as np
import pytest

from infalign_jax import stale_table as command
from infalign_jax.core import optimal, procedures, stale_table, theory, transforms
from infalign_jax.stages import calibrate

RNG = np.random.default_rng(0)


def test_a_moved_reference_by_hand():
    """Identity on a reference moved to best-of-2 has the score sqrt(v): density 1/Z exp(sqrt(v)/beta), integrated here."""
    phi = stale_table.seen_through(transforms.identity(), transforms.log(), 1.0)
    np.testing.assert_allclose(phi(np.array([0.0, 0.04, 0.49, 1.0])), [0, 0.2, 0.7, 1], atol=1e-5)
    v = (np.arange(200_000) + 0.5) / 200_000
    density = np.exp(np.sqrt(v) / 0.3)
    density /= density.mean()
    below = np.cumsum(density) / len(v)
    assert theory.win_rate(procedures.standard(), phi, 0.3) == pytest.approx(1 - below.mean(), abs=1e-4)


def test_a_reference_that_has_hardly_moved_needs_no_new_table():
    right, stale = stale_table.moved_win_rate(
        "best_of(4)", "optimal(best_of(4))", kl=0.5, moved="identity", moved_kl=1e-6
    )
    assert right == pytest.approx(optimal.optimal_transform("best_of(4)", kl=0.5).win_rate, abs=1e-5)
    assert stale == pytest.approx(right, abs=1e-3)
    losses = [
        np.subtract(
            *stale_table.moved_win_rate("best_of(4)", "optimal(best_of(4))", kl=0.5, moved="identity", moved_kl=kl)
        )
        for kl in (0.1, 0.5, 1.0)
    ]
    assert 0 < losses[0] < losses[1] < losses[2]  # certified: no other scores win more


def test_measured_as_in_closed_form():
    """Responses of a policy moved by inversion of G, tables of the old one: the loss is what the closed form says."""
    P, M, K = 400, 400, 1000
    moved, beta = optimal.resolve("identity", kl=0.5)
    v = RNG.random((P, M))
    u = np.asarray(stale_table.seen_through(transforms.identity(), moved, beta)(v))
    old, new = (
        RNG.random((P, K)),
        np.asarray(stale_table.seen_through(transforms.identity(), moved, beta)(RNG.random((P, K)))),
    )
    method, name = "optimal(best_of(4))", "best_of(4)"
    own, other = (stale_table.tilted(u, table, method, 0.5, [name]) for table in (new, old))
    right, stale = stale_table.moved_win_rate(name, method, kl=0.5, moved="identity", moved_kl=0.5)
    loss = own.win_rates[name].mean() - other.win_rates[name].mean()
    assert loss == pytest.approx(right - stale, abs=0.004)
    assert own.calibration_error < 0.03 < 0.1 < other.calibration_error


def test_the_command(tmp_path, capsys):
    for run, shift in (("right", 0.0), ("same", 0.0), ("far", 1.0)):
        folder = tmp_path / run / "calibrate"
        folder.mkdir(parents=True)
        arrays = {"rewards": np.sort(RNG.normal(shift, 1, (40, 64)), 1), "held_out": RNG.normal(shift, 1, (40, 300))}
        np.savez(folder / "table.npz", **arrays, truncated=np.zeros(40))
        (folder / "provenance.json").write_text("{}")
        (folder / calibrate.PROMPTS).write_text('{"prompts": ["a"]}')
    command.main([f"--policy={tmp_path / 'right'}", f"--tables={tmp_path / 'same'},{tmp_path / 'far'}"])
    lines = capsys.readouterr().out.splitlines()
    same, far = (next(line for line in lines if f"/{run} |" in line).split("|") for run in ("same", "far"))
    assert float(same[2]) < 0.1 < 0.2 < float(far[2])
    loss = float(far[5].split("(")[1].split()[0])
    assert loss < -0.005 and abs(float(same[5].split("(")[1].split()[0])) < 0.01
    assert next(line for line in lines if "not at all" in line).split("|")[4].strip() == "0.8733"
    (tmp_path / "far" / "calibrate" / calibrate.PROMPTS).write_text('{"prompts": ["b"]}')
    with pytest.raises(ValueError, match="far: its table is of other prompts"):
        command.main([f"--policy={tmp_path / 'right'}", f"--tables={tmp_path / 'far'}"])
    with pytest.raises(ValueError, match="--kl is 0"):
        command.main(["--policy=a", "--tables=b", "--kl=0"])
    with pytest.raises(ValueError, match="the same P prompts"):
        stale_table.tilted(np.zeros((2, 3)), np.zeros((3, 3)), "identity", 0.5, ["standard"])

"""`infalign frontier`: the numbers of the theory in a table, files, and what is refused."""

import csv
import json

import pytest

from infalign_jax import frontier_table, main
from infalign_jax.core import optimal, theory, transforms
from infalign_jax.core.procedures import best_of
from tests.refusals import refused


def test_the_table_has_the_numbers_of_the_theory(capsys, tmp_path):
    outs = [str(tmp_path / name) for name in ("a.csv", "b.json", "c.png", "d.svg")]
    words = ["--procedure", "best_of(8)", "--transforms=identity,exponential(10),optimal", "--kls=1, 0.5"]
    main.main(["frontier", *words, f"--out={','.join(outs)}"])
    said = capsys.readouterr().out
    phi = transforms.exponential(10)
    expected = {
        "identity": theory.win_rate(best_of(8), transforms.identity(), theory.beta_for_kl(transforms.identity(), 0.5)),
        "exponential(10)": theory.win_rate(best_of(8), phi, theory.beta_for_kl(phi, 0.5)),
        "optimal": optimal.optimal_transform(best_of(8), kl=0.5).win_rate,
    }
    for name, value in expected.items():
        (line,) = [line.split() for line in said.splitlines() if line.startswith(name + " ") and "0." in line]
        assert line[1] == f"{value:.4f}"
    assert said.splitlines()[2].split() == ["transform", "KL", "0.5", "KL", "1"]  # in order
    assert "certified: no policy wins more by" in said
    rows = json.loads((tmp_path / "b.json").read_text())
    assert {row["transform"]: row["win_rate"] for row in rows if row["kl"] == 0.5} == pytest.approx(expected)
    with open(tmp_path / "a.csv", newline="") as file:
        assert [float(row["win_rate"]) for row in csv.DictReader(file)] == [row["win_rate"] for row in rows]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG") and b"<svg" in (tmp_path / "d.svg").read_bytes()


def test_a_kl_out_of_reach_is_a_dash(capsys):
    main.main(["frontier", "--transforms=identity", "--kls=0.5,5", "--rollouts=4"])
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[0] == "identity" and 0.5 < float(last[1]) < 1 and last[2] == "–"


def test_names_with_commas_inside_brackets():
    assert frontier_table.split_names("log, exponential(-5),optimal") == ["log", "exponential(-5)", "optimal"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--procedure=best_off(4)"], "unknown procedure 'best_off(4)'"),
        (["--transforms=identity,lg"], "unknown transform 'lg'"),
        (["--transforms=identity,,log"], "it must be names separated by commas"),
        (["--kls=a"], "--kls is 'a'"),
        (["--kls=0.5,0"], "every KL must be a positive number"),
        (["--rollouts=-1"], "--rollouts is -1"),
        (["--out=x.gif"], "--out has 'x.gif'; it must end with .png"),
        (["--kl=1"], "frontier has no flag '--kl=1'"),
    ],
)
def test_what_is_wrong_is_said(words, sentence):
    assert sentence in refused(lambda: main.main(["frontier", *words]))

"""`infalign score`: the three formats, the numbers against the formula, and what is said about bad files."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from infalign_jax import main, references, score, shaping
from infalign_jax.core import theory, transforms
from infalign_jax.data import files
from tests.refusals import refused

RNG = np.random.default_rng(0)
PROMPTS = ("plain", 'a "quoted", one', "漢字\nand a line", "zażółć 🙂")
REFERENCE = {prompt: RNG.normal(size=5 + 3 * i).round(2) for i, prompt in enumerate(PROMPTS)}
REWARDS = [(prompt, float(np.round(RNG.normal(), 2))) for _ in range(7) for prompt in PROMPTS]


def by_hand(prompt, reward):
    row = REFERENCE[prompt].astype(np.float32)
    return (np.sum(row < np.float32(reward)) + 0.5 * np.sum(row == np.float32(reward))) / len(row)


def write(path, rows):
    with files.writer(path) as add:
        for row in rows:
            add(row)
    return str(path)


def run(tmp_path, rewards, reference, *words, out="out.jsonl"):
    words = [
        f"--rewards={rewards}",
        *([f"--reference={reference}"] if reference else []),
        f"--out={tmp_path / out}",
        *words,
    ]
    main.main(["score", *words])
    return [row for _, row in files.read(tmp_path / out)]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_format_gives_the_formula_and_keeps_the_other_columns(ending, tmp_path):
    rewards = write(tmp_path / f"a.{ending}", [{"id": i, "prompt": p, "reward": r} for i, (p, r) in enumerate(REWARDS)])
    singles = write(
        tmp_path / f"b.{ending}", [{"prompt": p, "reward": float(r)} for p, row in REFERENCE.items() for r in row]
    )
    lists = write(tmp_path / f"c.{ending}", [{"prompt": p, "reward": row.tolist()} for p, row in REFERENCE.items()])
    for reference in (singles, lists):
        rows = run(tmp_path, rewards, reference, "--transform=exponential(10)", out=f"out.{ending}")
        assert [(int(row["id"]), row["prompt"], float(row["reward"])) for row in rows] == [
            (i, p, r) for i, (p, r) in enumerate(REWARDS)
        ]
        u = np.array([float(row["calibrated"]) for row in rows])
        np.testing.assert_allclose(u, [by_hand(p, r) for p, r in REWARDS], atol=1e-6)
        phi = transforms.standardize(transforms.exponential(10))
        np.testing.assert_allclose([float(row["score"]) for row in rows], phi(u), rtol=1e-5, atol=1e-6)


def test_lists_of_rewards_own_references_and_log_at_zero(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": "hi"}], "reward": [-9.0, 0.0, 9.0], "reference_rewards": [1.0, -1.0]}
    ]
    (row,) = run(tmp_path, write(tmp_path / "a.jsonl", rows), "", "--transform=log")
    assert row["calibrated"] == [0.0, 0.5, 1.0] and row["prompt"] == rows[0]["prompt"]
    np.testing.assert_allclose(row["score"], 1 + np.log([0.25, 0.5, 1.0]), rtol=1e-5)  # u = 0 counts as half a rank


def test_beta_is_that_of_theory_and_told(tmp_path, capsys):
    rewards = write(tmp_path / "a.jsonl", [{"prompt": "p", "reward": 1.0}])
    reference = write(tmp_path / "b.jsonl", [{"prompt": "p", "reward": RNG.normal(size=64).tolist()}])
    rows = run(tmp_path, rewards, reference, "--transform", "optimal(best_of(8))", "--kl", "0.5")
    said = float(capsys.readouterr().err.split()[-1])
    how = shaping.make_shaping("optimal(best_of(8))", kl=0.5, rollouts=64)
    assert said == pytest.approx(theory.beta_for_kl(how.phi, 0.5, 64), rel=1e-3) and len(rows) == 1


def test_chunks_do_not_show(tmp_path, monkeypatch):
    rewards = write(tmp_path / "a.jsonl", [{"prompt": p, "reward": r} for p, r in REWARDS])
    reference = write(tmp_path / "b.jsonl", [{"prompt": p, "reward": row.tolist()} for p, row in REFERENCE.items()])
    whole = run(tmp_path, rewards, reference, "--tails=exponential")
    monkeypatch.setattr(score, "_CHUNK", 3)
    assert run(tmp_path, rewards, reference, "--tails=exponential") == whole


def test_memory_does_not_grow_with_the_rewards(tmp_path):
    """Streaming: four times the rows, (nearly) the same peak of memory allocated by Python."""
    import tracemalloc

    how = shaping.make_shaping("identity")
    peaks = []
    for count in (4_000, 16_000):
        rows = ((f"x:{i}", {"prompt": "p", "reward": 0.001 * i, "text": "x" * 100}) for i in range(count))
        tracemalloc.start()
        assert sum(1 for _ in score.scored(rows, {"p": np.arange(50, dtype=np.float32)}, how)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


GOOD = '{"prompt": "p", "reward": 1.0}\n'
BAD = {  # content of the rewards file (None: its own row below), of the reference file, flags: words of the sentence
    "missing": (None, GOOD, [], "does not exist"),
    "not json": (GOOD + "{oops\n", GOOD, [], "a.jsonl:2: the line is not valid JSON"),
    "no reward": (GOOD + '{"prompt": "p"}\n', GOOD, [], "a.jsonl:2: the row has no 'reward'; it has 'prompt'"),
    "text": ('{"prompt": "p", "reward": "high"}\n', GOOD, [], "a.jsonl:1: 'reward' is 'high'; it must be a number"),
    "boolean": ('{"prompt": "p", "reward": true}\n', GOOD, [], "'reward' is True"),
    "nan": ('{"prompt": "p", "reward": NaN}\n', GOOD, [], "a.jsonl:1: 'reward' is nan; every reward must be finite"),
    "huge": ('{"prompt": "p", "reward": 1e300}\n', GOOD, [], "must be finite in float32"),
    "unknown prompt": ('{"prompt": "q", "reward": 1}\n', GOOD, [], "a.jsonl:1: the prompt 'q' has no reference reward"),
    "taken": ('{"prompt": "p", "reward": 1, "score": 2}\n', GOOD, [], "a.jsonl:1: the row has a column 'score' already"),
    "no prompt": ('{"reward": 1}\n', GOOD, [], "a.jsonl:1: the row has no 'prompt'"),
    "empty": ("", GOOD, [], "is empty"),
    "digits": ('{"prompt": "p", "reward": ' + "9" * 5000 + "}\n", GOOD, [], "a.jsonl:1: the line is not valid JSON"),
    "depth": ('{"prompt": "p", "reward": ' + "[" * 100_000 + "}\n", GOOD, [], "a.jsonl:1: the line is not valid JSON"),
    "bad reference": (GOOD, GOOD + '{"prompt": "p", "reward": []}\n', [], "b.jsonl:2: the prompt has no reference reward"),
    "inf reference": (GOOD, '{"prompt": "p", "reward": [1, Infinity]}\n', [], "b.jsonl:1: 'reward' is [1, inf]"),
    "no reference": (GOOD, None, [], "a.jsonl:1: the row has no list 'reference_rewards'"),
    "transform": (GOOD, GOOD, ["--transform=exponental(10)"], "unknown transform 'exponental(10)'"),
    "optimal": (GOOD, GOOD, ["--transform=optimal(best_of(4))"], "depends on the KL"),
    "zero kl": (GOOD, GOOD, ["--kl=0"], "--kl is 0; it must be a positive number"),
    "far kl": (GOOD, GOOD, ["--kl=5"], "out of reach"),
    "tails": (GOOD, GOOD, ["--tails=long"], "tails must be one of flat, exponential"),
    "format": (GOOD, GOOD, ["--out=x.xlsx"], "the format of 'x.xlsx' cannot be told"),
    "flag": (GOOD, GOOD, ["--rewrads=x"], "score has no flag '--rewrads=x'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_with_its_line(name, tmp_path):
    rewards, reference, words, sentence = BAD[name]
    for file, text in (("a.jsonl", rewards), ("b.jsonl", reference)):
        if text is not None:
            (tmp_path / file).write_text(text)
    words = [*words, *([] if any(w.startswith("--out") for w in words) else [f"--out={tmp_path / 'out.jsonl'}"])]
    given = [f"--reference={tmp_path / 'b.jsonl'}"] if reference is not None else []
    assert sentence in refused(lambda: main.main(["score", f"--rewards={tmp_path / 'a.jsonl'}", *given, *words]))
    assert {path.name for path in tmp_path.iterdir()} <= {"a.jsonl", "b.jsonl"}, "nothing half written is left"


def test_bad_csv_and_parquet(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,reward\np,1\np,1,2\n")
    assert "a.csv:3: the line does not have 2 cells" in refused(lambda: list(files.read(tmp_path / "a.csv")))
    (tmp_path / "b.csv").write_text("prompt,reward\n")
    assert "holds no row" in refused(lambda: list(files.read(tmp_path / "b.csv")))
    (tmp_path / "c.csv").write_bytes(b"prompt,reward\n\xff\xfe,1\n")
    assert "not UTF-8" in refused(lambda: list(files.read(tmp_path / "c.csv")))
    (tmp_path / "twice.csv").write_text("prompt,reward,reward\np,1,2\n")
    assert "the column 'reward' is there twice" in refused(lambda: list(files.read(tmp_path / "twice.csv")))
    (tmp_path / "long.csv").write_text("prompt,reward\n" + "x" * 200_000 + ",1\n")
    assert len(next(files.read(tmp_path / "long.csv"))[1]["prompt"]) == 200_000
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is a folder or a device, not a file" in refused(lambda: files.read(tmp_path / "pipe.jsonl"))
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no")
    assert "not a valid Parquet file" in refused(lambda: list(files.read(tmp_path / "d.parquet")))
    with open(tmp_path / "e.csv", "w", newline="") as file:
        csv.writer(file).writerows([["prompt", "reward"], ["p", "[1, 2.5]"]])
    assert references.read(tmp_path / "e.csv")["p"].tolist() == [1.0, 2.5]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    assert "pip install 'infalign-jax[parquet]'" in refused(lambda: list(files.read(tmp_path / "a.parquet")))


def test_as_a_program_it_writes_lines_or_exits_with_2(tmp_path):
    (tmp_path / "a.jsonl").write_text(GOOD + '{"prompt": "p"}\n')
    (tmp_path / "b.jsonl").write_text(GOOD)
    program = [sys.executable, "-m", "infalign_jax", "score", "--rewards", "a.jsonl", "--reference", "b.jsonl"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "a.jsonl:2" in done.stderr and "Traceback" not in done.stderr


def test_standard_output_gets_json_lines(tmp_path, capsys):
    paths = [write(tmp_path / name, [{"prompt": "p", "reward": 1.0}]) for name in ("a.jsonl", "b.jsonl")]
    main.main(["score", "--rewards", paths[0], "--reference", paths[1]])
    assert json.loads(capsys.readouterr().out)["calibrated"] == 0.5

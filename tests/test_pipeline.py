"""The whole pipeline on a tiny task: what it writes, that it goes on after being killed, and that devices do not matter."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from infalign_jax import __version__, load_policy, main, procedures
from infalign_jax.core.winrate import win_rate_per_prompt
from infalign_jax.stages import align, calibrate, experiment, settings
from infalign_jax.training import workdir
from tests import tiny
from tests.compilations import Compilations
from tests.test_samples import check_folder

ROOT = pathlib.Path(__file__).parent.parent


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A workdir in which every stage has run, learned reward and gold judge, and what was compiled meanwhile."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.get_config()
    with config.unlocked():
        config.reward = "learned"
    with Compilations() as compilations:
        main.run("run", config, folder)
    return folder, compilations.names


@pytest.fixture(scope="module")
def finished(ran):
    return ran[0]


def test_no_step_compiles_twice(ran):
    """In a whole run: a step's own state comes back to it, both methods share a step, and a stage's calls have one shape."""
    names = ran[1]
    assert names["step"] == 3  # sft, reward model, align
    assert names["_sample"] == 3  # calibrate, align, evaluate
    assert names["sequence_kl"] == names["_mix"] == 1


def test_results_have_every_row_and_make_sense(finished):
    rows = read(finished / "evaluate" / "results.json")
    keys = {(r["method"], r["procedure"], r["n"], r["judge"]) for r in rows}
    kinds = [("standard", 1), *((kind, n) for kind in ("best_of", "worst_of") for n in (2, 4, 8))]
    assert keys == {(m, *k, j) for m in ("raw", "exponential(10)") for k in kinds for j in ("train", "gold")}
    assert len(rows) == len(keys)
    for row in rows:
        assert 0 <= row["low"] <= row["win_rate"] <= row["high"] <= 1
        assert row["kl_se"] > 0
        assert (row["theory"] is None) == (row["method"] == "raw" or row["judge"] == "gold")


def test_comparisons_are_antisymmetric_and_match_the_rows(finished):
    rates = {
        (r["method"], r["procedure"], r["n"], r["judge"]): r["win_rate"]
        for r in read(finished / "evaluate/results.json")
    }
    rows = read(finished / "evaluate" / "comparisons.json")
    assert len(rows) == 2 * 7 * 2
    for row in rows:
        key = (row["procedure"], row["n"], row["judge"])
        assert row["difference"] == pytest.approx(rates[row["method"], *key] - rates[row["baseline"], *key], abs=1e-12)
        assert row["low"] <= row["difference"] <= row["high"]


def test_the_curve_starts_at_the_reference(finished):
    for row in read(finished / "evaluate" / "frontier.json"):
        if row["alpha"] == 0:
            assert row["kl"] == pytest.approx(0, abs=1e-6)
            assert 0.3 < row["win_rate"] < 0.7


def test_the_page_holds_the_figures(finished):
    page = (finished / "evaluate" / "report.html").read_text()
    assert page.count("<svg") >= 4
    assert "exponential(10)" in page and f"Written by infalign {__version__}." in page
    assert {path.name for path in (finished / "evaluate" / "figures").iterdir()} >= {"headline.png", "kl_by_group.png"}


def test_a_second_run_does_nothing(finished):
    config = tiny.get_config()
    with config.unlocked():
        config.reward = "learned"
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("done.json")}
    started = time.monotonic()
    main.run("run", config, finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("done.json")} == before
    assert len(before) == 6  # sft, reward model, calibrate, two methods, evaluate
    assert time.monotonic() - started < 60


def test_the_table_is_sorted_and_says_where_it_is_from(finished):
    config = tiny.get_config()
    with config.unlocked():
        config.reward = "learned"
    config = settings.resolve(config, finished)
    folder = experiment.open_experiment(config).workdir / "calibrate"
    table = calibrate.load_table(config, folder)
    assert table.rewards_PK.shape == (336 - 12, 16)
    assert (np.diff(table.rewards_PK, axis=1) >= 0).all()
    with config.unlocked():
        config.seed = 7
    with pytest.raises(ValueError, match=r"seed: 0 -> 7"):
        calibrate.load_table(config, folder)


def test_samples_of_training_are_kept_and_are_those_of_training(finished):
    """The tiny recipe has 12 steps: only the first is shown."""
    for method in ("raw", "exponential_10"):
        check_folder(finished / "align" / method / "seed_0", rollouts=4, steps=[0])


def test_every_number_of_training_is_in_a_glossary(finished):
    glossary = "".join((ROOT / "docs" / page).read_text() for page in ("how-to.md", "methods.md"))
    for file in finished.rglob("metrics.jsonl"):
        row = json.loads(file.read_text().splitlines()[-1])
        assert len(row) > 3 and not [name for name in row if f"`{name}`" not in glossary], file


def test_calibration_continues_after_the_last_part(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "again")
    folder = tmp_path / "again" / "calibrate"
    first, second, third = sorted((folder / "parts").iterdir())
    expected, kept = np.load(folder / "table.npz")["rewards"], first.stat().st_mtime_ns
    for path in (second, third, folder / "table.npz", folder / "done.json"):
        path.unlink()
    config = tiny.get_config()
    with config.unlocked():
        config.reward = "learned"
    main.run("calibrate", config, tmp_path / "again")
    np.testing.assert_array_equal(np.load(folder / "table.npz")["rewards"], expected)
    assert first.stat().st_mtime_ns == kept


def test_a_finished_policy_loads_by_itself_from_a_moved_workdir(finished, tmp_path):
    """`load_policy` needs no config: the folder says what model and tokeniser it is of."""
    moved = shutil.copytree(finished, tmp_path / "moved", ignore=shutil.ignore_patterns("checkpoints"))
    policy, reference = (load_policy(moved / part) for part in ("align/raw/seed_0", "sft"))
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(finished / "align" / "raw" / "seed_0" / "variables")
    jax.tree.map(np.testing.assert_array_equal, saved, policy.variables)
    texts = [row["prompt"] for row in read(finished / "evaluate" / "samples.json")][:2]
    assert np.all(policy.log_probs(texts, ["good", "good"]) != reference.log_probs(texts, ["good", "good"]))
    assert len(policy.generate(texts, n=2, max_tokens=3)[1]) == 2


def test_the_sampled_policies_moved_towards_reward(finished):
    rows = read(finished / "evaluate" / "results.json")
    standard = {r["method"]: r for r in rows if r["procedure"] == "standard" and r["judge"] == "train"}
    assert standard["exponential(10)"]["win_rate"] > 0.5


def command(folder, *words):
    files = [f"--config={ROOT}/tests/tiny.py", f"--workdir={folder}"]
    return [sys.executable, "-m", "infalign_jax", words[0], *files, *words[1:]]


def test_killed_in_the_middle_of_align_ends_bit_identical(finished, tmp_path):
    """kill -9 after some steps, start again: the same parameters as a run that was never interrupted, to the bit."""
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("align", "evaluate"))
    words = command(folder, "align", "--config.reward=learned")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = folder / "align" / "exponential_10" / "seed_0" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= 5:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "align" / "exponential_10" / "seed_0" / "done.json").exists(), process.stderr.read()
    subprocess.run(words, check=True, timeout=280, capture_output=True)
    for method in ("raw", "exponential_10"):
        with ocp.StandardCheckpointer() as checkpointer:
            a, b = (
                checkpointer.restore(root / "align" / method / "seed_0" / "variables") for root in (finished, folder)
            )
        jax.tree.map(np.testing.assert_array_equal, a, b)
        steps = [
            json.loads(line)["step"]
            for line in (folder / "align" / method / "seed_0" / "metrics.jsonl").read_text().splitlines()
        ]
        assert steps == list(range(12))


@pytest.mark.parametrize("words", [[], pytest.param(["splash"], marks=pytest.mark.slow)])
def test_eight_devices_do_what_one_does(words):
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "multi_device.py"), *words],
        check=True,
        capture_output=True,
        text=True,
        timeout=280,
    )
    found = json.loads(result.stdout.splitlines()[-1])
    for name, report in found["meshes"].items():
        assert report["same_tokens"], name
        for key in ("loss", "gradients", "variables"):
            assert report[key] < 1e-5, (name, key, report[key])
    assert found["gathered_a_token"] < 0.05, "while tokens are drawn parameters stay and activations move"
    assert found["tables_moved"] == 0, "a lookup and its gradient stay within a device's share of the table"


def test_a_non_finite_reward_stops_with_the_prompt_and_keeps_what_is_done(finished, tmp_path):
    folder = tmp_path / "nan"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("calibrate", "align", "evaluate"))
    config = tiny.get_config()
    with config.unlocked():
        config.reward = "tests.test_pipeline:broken_reward"
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"calibrate: the reward is nan for prompt '\w+ \w+ \w+ :'"):
        main.run("calibrate", config, folder)
    assert workdir.done(folder / "sft") is not None


def broken_reward(prompts, completions):
    return [float("nan") if i == 3 else 0.5 for i in range(len(prompts))]


def test_score_rule_starts_every_method_at_the_same_kl():
    """The starting beta of raw rewards spends the same KL on the table as that of calibrated ones does in closed form."""
    table_PK = np.sort(np.random.default_rng(0).normal(size=(64, 128)) * 3, 1)
    _, raw_beta = align.score_rule("raw", table_PK, 0.5)
    rule, beta = align.score_rule("identity", table_PK, 0.5)
    assert float(rule.reward_scale) == 1.0
    assert raw_beta == pytest.approx(1.0, rel=0.1)  # a standard normal reward: KL = 1 / (2 beta^2)
    assert beta == pytest.approx(0.841, rel=0.05)


def test_win_rate_of_a_policy_against_itself_is_one_half():
    rewards = np.random.default_rng(0).normal(size=(4, 16))
    np.testing.assert_allclose(win_rate_per_prompt(procedures.best_of(4), rewards, rewards), 0.5, atol=1e-9)

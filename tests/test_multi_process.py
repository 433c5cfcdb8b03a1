"""Two processes as one run: the same results as one, and what goes wrong on one of them ends both and loses nothing.

Slow, all of it: each test starts several processes that compile. `pytest -m slow -n0 -rP tests/test_multi_process.py`
also prints how long the last process outlived the first.
"""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests import multi_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
STEPS = 12
KEYS = {
    "sft.steps": 4, "sft.batch_size": 16, "calibrate.rollouts": 4, "calibrate.held_out": 2, "calibrate.mismatch": "ignore",
    "data.train_prompts": 48, "align.methods": "raw", "align.prompts_per_step": 8, "align.rollouts": 2,
    "align.steps": STEPS, "align.save_every": 3,
}  # fmt: skip
BOUND = 60  # seconds in which the others must have ended when one has


def words(command, folder, **keys):
    changes = {**KEYS, **{name.replace("__", "."): value for name, value in keys.items()}}
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    return [command, "--config", ROOT / "tests" / "tiny.py", "--workdir", folder, *flags]


def faulty(fault, process, step, folder, **keys):
    return [sys.executable, ROOT / "tests" / "faulty.py", fault, process, step, *words("align", folder, **keys)]


def run(count, devices, command, **variables):
    """(statuses, outputs, seconds from the first end to the last) of `count` processes."""
    statuses, outputs, seconds = multi_process.finish(multi_process.start(count, devices, command, **variables))
    print(f"{count} processes ended with {statuses}, {seconds:.1f} s from the first to the last")
    return statuses, outputs, seconds


def align(folder, count=2, devices=1, **keys):
    """Goes on to the end; all must end well."""
    statuses, outputs, _ = run(count, devices, [*multi_process.CLI, *words("align", folder, **keys)])
    assert statuses == [0] * count, outputs
    return outputs


def made(folder):
    """Parameters and rows of metrics that stage align left."""
    seed = folder / "align" / "raw" / "seed_0"
    rows = [json.loads(line) for line in (seed / "metrics.jsonl").read_text().splitlines()]
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        names = checkpointer.metadata(seed / "variables").item_metadata.tree
        here = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
        return checkpointer.restore(seed / "variables", restore_args=here), rows


def saved(folder):
    """Steps of the checkpoints that are whole."""
    places = (folder / "align" / "raw" / "seed_0" / "checkpoints").iterdir()
    return sorted(int(path.name) for path in places if path.name.isdigit())


def assert_same(folder, other):
    """Bit-identical parameters, and the same metrics at every step."""
    (variables, rows), (expected, expected_rows) = made(folder), made(other)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert [row["step"] for row in rows] == list(range(STEPS))
    for row, wanted in zip(rows, expected_rows, strict=True):
        kept = {name for name in row if "seconds" not in name and "memory" not in name}
        assert {name: row[name] for name in kept} == {name: wanted[name] for name in kept}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A workdir ready for stage align, made by one process."""
    folder = tmp_path_factory.mktemp("prepared")
    for stage in ("sft", "calibrate"):
        statuses, outputs, _ = run(1, 1, [*multi_process.CLI, *words(stage, folder)])
        assert statuses == [0], outputs
    return folder


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """What two processes make when nothing goes wrong."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("whole") / "run")
    align(folder)
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "run")


@pytest.mark.parametrize(("count", "devices"), [(1, 8), (2, 4), (4, 2)])
def test_meshes_over_processes_compute_what_one_device_does(count, devices, tmp_path_factory):
    reference = tmp_path_factory.getbasetemp() / "one_device.pickle"
    program = [sys.executable, ROOT / "tests" / "multi_process.py"]
    layouts = [(1, 1)] * (not reference.exists()) + [(count, devices)]
    for layout in layouts:
        statuses, outputs, _ = run(*layout, program, REFERENCE=str(reference))
        assert statuses == [0] * layout[0], outputs
    report = json.loads(outputs[0].splitlines()[-1])
    assert (report["processes"], report["devices"]) == (count, count * devices)
    for name, found in report["meshes"].items():
        assert found["same_tokens"], name
        for key in ("loss", "gradients", "variables"):
            assert found[key] < 1e-5, (name, key, found[key])
        assert found["asked"] == [8 * 4 // count] * count, name  # rewards of 8 prompts with 4 rollouts, by host


def test_the_whole_pipeline_by_two_processes(tmp_path):
    command = [
        *multi_process.CLI,
        *words("run", tmp_path, reward="tests.multi_process:length_of_own", evaluate__samples=16),
    ]
    statuses, outputs, _ = run(2, 2, command, SCORED=str(tmp_path / "scored"))
    assert statuses == [0, 0], outputs
    assert (tmp_path / "evaluate" / "report.html").exists() and "report:" in outputs[0] and "report:" not in outputs[1]
    first, second = (json.loads((tmp_path / f"scored.{number}").read_text()) for number in range(2))
    assert first == second and first[str(8 * 2 // 2)] == STEPS  # half of a step's 8 prompts with 2 rollouts each
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_error_on_one_process_ends_both(folder):
    command = [*multi_process.CLI, *words("align", folder)]
    (folder / "config.json").unlink()
    (folder / "calibrate" / "provenance.json").write_text(
        (folder / "calibrate" / "provenance.json").read_text().replace('"gold"', '"tests.multi_process:broken_on_1"')
    )
    statuses, outputs, seconds = run(2, 1, [*command, "--config.reward=tests.multi_process:broken_on_1"])
    assert statuses == [2, 2] and seconds < BOUND, outputs
    assert "another process could not score its rollouts" in outputs[0]
    assert "process 1: the reward 'tests.multi_process:broken_on_1' raised RuntimeError: no rewards today" in outputs[1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_notice_of_preemption_is_saved_and_the_run_goes_on_exactly(count, folder, whole, prepared, tmp_path):
    statuses, outputs, _ = run(count, 1, faulty("term", count - 1, 4, folder))
    assert statuses == [0] * count, outputs
    assert "stopped on a notice of preemption" in outputs[0]
    assert 4 <= max(saved(folder)) < STEPS
    align(folder, count)
    if count == 1:
        whole = shutil.copytree(prepared, tmp_path / "whole")
        align(whole, 1)
    assert_same(folder, whole)


def test_a_single_process_without_the_runtime_saves_too(folder, prepared, tmp_path):
    statuses, outputs, _ = run(1, 1, faulty("term", 0, 4, folder), JOIN="no", INFALIGN_PREEMPTED_STATUS="75")
    assert statuses == [75] and saved(folder)[-1] == 4, outputs
    align(folder, 1)
    whole = shutil.copytree(prepared, tmp_path / "whole")
    align(whole, 1)
    assert_same(folder, whole)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("fault", ["kill", "kill_in_save"])
def test_the_others_end_when_one_is_killed_and_a_restart_goes_on_exactly(fault, victim, folder, whole):
    statuses, outputs, seconds = run(2, 1, faulty(fault, victim, 6, folder))
    assert statuses[victim] == -9 and statuses[1 - victim] not in (0, -9), (statuses, outputs)
    assert seconds < BOUND
    text = outputs[1 - victim]
    assert "another process of this run has ended" in text or "distributed service detected fatal errors" in text
    assert saved(folder)[0] == 3
    align(folder)
    assert_same(folder, whole)


def test_killed_when_all_is_written_but_not_declared_whole(folder, whole):
    statuses, outputs, seconds = run(2, 1, faulty("kill_at_end", 0, 6, folder))
    assert statuses[0] == -9 and statuses[1] not in (0, -9) and seconds < BOUND, (statuses, outputs)
    assert saved(folder) == [3]
    align(folder)
    assert_same(folder, whole)


@pytest.mark.parametrize("process", [0, 1])
def test_a_truncated_checkpoint_is_named_and_the_one_before_is_taken(process, folder, whole):
    statuses, outputs, _ = run(2, 1, faulty("kill", 0, 8, folder))
    assert saved(folder) == [3, 6], (statuses, outputs)
    place = folder / "align" / "raw" / "seed_0" / "checkpoints" / "6" / "default" / f"ocdbt.process_{process}" / "d"
    for file in place.iterdir():  # values come first; the end may be an index that the whole checkpoint has anew
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 8])
    outputs = align(folder)
    assert any("checkpoints/6 cannot be read" in text for text in outputs), outputs
    assert_same(folder, whole)


@pytest.mark.parametrize(("process", "log"), [(0, "pipe"), (1, "pipe"), (0, "file")])
def test_a_disk_that_is_full_is_said_and_the_checkpoint_before_is_kept(process, log, folder, whole):
    """Where the log is on that disk too nothing can be said, and all must end nevertheless."""
    statuses, outputs, seconds = run(2, 1, faulty("full_disk", process, 6, folder), LOG=log)
    assert all(status not in (0, -9) for status in statuses) and seconds < BOUND, (statuses, outputs)
    assert log == "file" or "free some space and start again" in outputs[process]
    assert saved(folder) == [3]
    align(folder)
    assert_same(folder, whole)


@pytest.mark.parametrize("devices", [1, 2])
def test_half_the_processes_see_the_same_data_and_random_bits(devices, folder, whole):
    run(2, 1, faulty("kill", 1, 6, folder))
    align(folder, 1, devices)
    (variables, rows), (expected, expected_rows) = made(folder), made(whole)
    for row, wanted in zip(rows, expected_rows, strict=True):
        assert (row["length"], row["truncated"]) == (wanted["length"], wanted["truncated"]), row["step"]
        assert row["reward"] == pytest.approx(wanted["reward"], abs=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), variables, expected)

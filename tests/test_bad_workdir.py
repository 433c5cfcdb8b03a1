"""Damaged, foreign, read-only and full workdirs: one sentence that says how to go on, and nothing is lost."""

import os
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax import main
from infalign_jax.models import transformer
from infalign_jax.stages import calibrate, experiment, order
from infalign_jax.training import checkpoints
from infalign_jax.training import workdir as workdirs
from tests.refusals import refused, resolved

# The stages that have work when the reward is learned and the rest is as in the tiny recipe.
LEARNED = [stage for stage in order.STAGES if order.outputs(resolved("x", reward="learned"), stage)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir whose stages all say that they are done, with untrained parameters."""
    folder = tmp_path_factory.mktemp("finished")
    config = resolved(folder, reward="learned")
    with workdirs.claim(config.to_dict()):
        opened = experiment.open_experiment(config)
    shapes = jax.eval_shape(lambda key: transformer.init(opened.model, key), jax.random.key(0))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    for stage in order.STAGES:
        for below in order.outputs(config, stage).values():
            if stage not in ("calibrate", "evaluate"):
                checkpoints.save_variables(folder / below / "variables", variables)
            workdirs.write_json(folder / below / "done.json", {})
    P = len(opened.dataset.train_prompts)
    table = dict(rewards=np.zeros((P, 16)), held_out=np.zeros((P, 4)), truncated=np.zeros(P))
    np.savez(folder / "calibrate" / "table.npz", **table)
    workdirs.write_json(folder / "calibrate" / "provenance.json", calibrate.provenance(config))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def run(command, folder, **changes):
    config = resolved(folder, **{"reward": "learned", **changes})
    with config.unlocked():
        del config["workdir"]
        config.workdir = ""
    main.run(command, config, folder)


@pytest.mark.parametrize(
    ("stage", "earlier"),
    [(stage, earlier) for i, stage in enumerate(LEARNED) for earlier in LEARNED[:i]],
)
def test_a_stage_before_one_that_it_needs(stage, earlier, copy):
    for below in order.outputs(resolved(copy, reward="learned"), earlier).values():
        (copy / below / "done.json").unlink()
    line = refused(lambda: run(stage, copy))
    assert line.startswith(f"stage {stage} needs stage {earlier} first, and {copy}") and f"infalign {earlier}" in line


def test_nothing_is_done_twice(copy, capsys):
    workdirs.write_json(copy / "evaluate" / "done.json", {"asked": order.evaluation_asked(resolved(copy))})
    run("run", copy)
    said = capsys.readouterr().err
    assert all(f"] {stage}: done before" in said for stage in LEARNED)
    assert said.count("nothing to do") == len(order.STAGES) - len(LEARNED)
    assert "report" not in said and str(copy / "sft" / "variables") in said


RECORDS = ["config.json", "data.json", "sft/done.json", "align/raw/seed_0/done.json", "calibrate/provenance.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1]", b"null", b"\xff\xff", b"3"])
@pytest.mark.parametrize("name", RECORDS)
def test_damaged_records(name, content, copy):
    (copy / name).write_bytes(content)
    line = refused(lambda: run("evaluate", copy))
    assert str(copy / name) in line and "is damaged" in line and "delete" in line


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.95])
def test_damaged_table(keep, copy):
    path = copy / "calibrate" / "table.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    line = refused(lambda: run("evaluate", copy))
    assert line.startswith(f"{path} is damaged") and "done.json" in line


@pytest.mark.parametrize("values", [np.nan, np.inf, "words", None])
def test_tables_and_parts_that_hold_no_rewards(values, tmp_path):
    (tmp_path / "parts").mkdir()
    path = tmp_path / "parts" / "00000000.npz"
    np.savez(path, rewards=np.array([[values]]), ended=np.ones((1, 1), bool))
    assert f"{path} is damaged" in refused(lambda: calibrate.read_arrays(path, ("rewards", "ended")))
    np.savez(path, ended=np.ones((1, 1), bool))
    assert f"{path} is damaged" in refused(lambda: calibrate.read_arrays(path, ("rewards", "ended")))


@pytest.mark.parametrize("name", ["table.npz", "provenance.json"])
def test_a_table_that_is_gone(name, copy):
    (copy / "calibrate" / name).unlink()
    line = refused(lambda: run("evaluate", copy))
    assert "there is no calibration table" in line and str(copy / "calibrate" / "done.json") in line


@pytest.mark.parametrize("key", ["reward", "seed", "rollouts", "reference_policy", "sampling"])
def test_a_table_of_another_origin(key, copy):
    path = copy / "calibrate" / "provenance.json"
    workdirs.write_json(path, {**workdirs.read_json(path), key: "another"})
    line = refused(lambda: run("evaluate", copy))
    assert "of another origin" in line and key in line


@pytest.mark.parametrize("content", [b"", b"x", b"\n\x0f\n\x05<pad>", os.urandom(300)])
def test_damaged_tokenizer(content, copy):
    path = copy / "tokenizer" / "tokenizer.model"
    path.write_bytes(content)
    assert str(path) in refused(lambda: run("evaluate", copy))


def test_parameters_missing_emptied_or_of_another_model(copy):
    folder = copy / "sft" / "variables"
    shutil.move(folder, copy / "aside")
    line = refused(lambda: run("evaluate", copy))
    assert f"there are no parameters in {folder}" in line and str(copy / "sft" / "done.json") in line
    folder.mkdir()
    assert f"the parameters in {folder} cannot be read" in refused(lambda: run("evaluate", copy))
    folder.rmdir()
    folder.write_text("a file")
    assert f"the parameters in {folder} cannot be read" in refused(lambda: run("evaluate", copy))
    folder.unlink()
    shutil.copytree(copy / "aside", folder)
    (folder / "_METADATA").write_text('{"tree')
    assert f"the parameters in {folder} cannot be read" in refused(lambda: run("evaluate", copy))
    shutil.rmtree(folder)
    checkpoints.save_variables(folder, {"params": {"embed": {"embedding": jnp.zeros((3, 2))}}})
    assert f"the parameters in {folder} cannot be read" in refused(lambda: run("evaluate", copy))


def test_checkpoints_that_cannot_be_read_are_not_silently_begun_anew(tmp_path):
    with checkpoints.open_checkpoints(tmp_path) as manager:
        checkpoints.save(manager, 1, {"a": jnp.ones(3)})
    for file in (tmp_path / "1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with checkpoints.open_checkpoints(tmp_path) as manager:
        line = refused(lambda: checkpoints.restore_latest(manager, {"a": jax.ShapeDtypeStruct((3,), jnp.float32)}))
    assert line.startswith(f"no checkpoint in {tmp_path} can be read") and "delete that folder" in line
    with checkpoints.open_checkpoints(tmp_path / "none") as manager:
        assert checkpoints.restore_latest(manager, {}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"model__num_layers": 2}, "model.num_layers: 1 -> 2"),
        ({"calibrate__rollouts": 8}, "calibrate.rollouts: 16 -> 8"),
        ({"reward": "gold"}, "reward: 'learned' -> 'gold'"),
    ],
)
def test_a_workdir_made_by_another_config(changes, words, copy):
    before = (copy / "config.json").read_bytes()
    line = refused(lambda: run("run", copy, **changes))
    assert f"workdir {copy} was made by another config" in line and words in line and "choose another --workdir" in line
    assert (copy / "config.json").read_bytes() == before


def test_a_workdir_that_is_a_file_or_below_one(tmp_path):
    (tmp_path / "file").write_text("precious")
    for folder, says in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "run", "cannot be written")):
        assert f"workdir {folder} {says}" in refused(lambda folder=folder: run("run", folder))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_workdir_that_cannot_be_written(monkeypatch):
    """As root every folder can be written: there the test runs as nobody."""
    folder = pathlib.Path("/tmp") / f"infalign-read-only-{os.getpid()}"
    folder.mkdir(mode=0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        for place in (folder, folder / "run"):
            assert f"workdir {place} cannot be written: Permission denied" in refused(
                lambda place=place: run("run", place)
            )
    finally:
        os.seteuid(user)
        folder.rmdir()


@pytest.fixture
def full_disk():
    """Files may not grow beyond a few bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(tmp_path, full_disk):
    path = tmp_path / "done.json"
    workdirs.write_json(path, {"a": 1})
    line = refused(lambda: workdirs.write_json(path, {"a": "b" * 1000}))
    assert "free some space" in line and workdirs.read_json(path) == {"a": 1}
    line = refused(lambda: calibrate.write_arrays(tmp_path / "table.npz", rewards=np.zeros((9, 9))))
    assert "free some space" in line and not (tmp_path / "table.npz").exists()


def test_a_disk_that_fills_while_parameters_are_saved(tmp_path, full_disk):
    def act():
        checkpoints.save_variables(tmp_path / "variables", {"params": {"a": jnp.ones((64, 64))}})

    assert "free some space" in refused(act)
    assert not (tmp_path / "variables").exists()


def test_a_disk_that_fills_during_a_checkpoint(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def act():
        with checkpoints.open_checkpoints(tmp_path) as manager:
            checkpoints.save(manager, 1, {"a": jnp.ones((64, 64))})
            manager.wait_until_finished()
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
            checkpoints.save(manager, 2, {"a": jnp.ones((64, 64))})

    try:
        assert "free some space" in refused(act)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with checkpoints.open_checkpoints(tmp_path) as manager:
        kept = checkpoints.restore_latest(manager, {"a": jax.ShapeDtypeStruct((64, 64), jnp.float32)})
    assert np.all(np.asarray(kept["a"]) == 1)

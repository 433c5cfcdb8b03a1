"""Bad data, rewards, folders and disks: one sentence that says what is wrong and how to go on, and nothing is lost."""

import gzip
import json
import os
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax import errors, main
from infalign_jax.models import transformer
from infalign_jax.stages import calibrate, experiment, order, settings
from infalign_jax.stages import reward as rewards
from infalign_jax.training import checkpoints, loop
from infalign_jax.training import workdir as workdirs
from tests import tiny

GOOD = {"prompt": "say hello to", "chosen": "the world", "rejected": "nobody"}
LINES = {  # one line of a JSONL file: words of the sentence
    b'{"prompt": "a", ': "data.jsonl:2: the line is not valid JSON",
    b"nonsense": "data.jsonl:2: the line is not valid JSON",
    b"[1, 2]": "data.jsonl:2: the line holds a JSON list",
    b"null": "data.jsonl:2: the line holds a JSON NoneType",
    b"\xff\xfe": "data.jsonl:2: the line is not UTF-8",
    b'{"text": "a"}': "data.jsonl:2: the row needs 'prompt'",
    b'{"prompt": "", "completion": "b"}': "data.jsonl:2: the prompt is empty",
    b'{"prompt": " \\n", "completion": "b"}': "data.jsonl:2: the prompt is empty",
    b'{"prompt": "a", "completion": ""}': "data.jsonl:2: the response 'completion' is empty",
    b'{"prompt": "a", "chosen": "b", "rejected": " "}': "data.jsonl:2: the response 'rejected' is empty",
    b'{"prompt": "a", "chosen": "b"}': "data.jsonl:2: the row has 'chosen' but no 'rejected'",
    b'{"prompt": 3, "completion": "b"}': "data.jsonl:2: 'prompt' has type int",
    b'{"prompt": "a", "completion": null}': "data.jsonl:2: 'completion' has type NoneType",
    b'{"prompt": [], "completion": "b"}': "data.jsonl:2: 'prompt' is an empty list",
    b'{"prompt": [{"role": "user"}], "completion": "b"}': "data.jsonl:2: 'prompt' holds a message without",
    b'{"chosen": "x y", "rejected": "a b"}': "data.jsonl:2: 'chosen' and 'rejected' do not begin with the same prompt",
}
REWARDS = {  # what a user's reward returns for two completions: words of the sentence
    "nan": (lambda p, c: [1.0, float("nan")], "the reward is nan for prompt 'q', completion 'b'"),
    "inf": (lambda p, c: np.array([np.inf, 0.0]), "the reward is inf for prompt 'p', completion 'a'"),
    "beyond float32": (lambda p, c: [1e300, 0.0], "the reward is inf"),
    "huge integer": (lambda p, c: [10**400, 0], "they must be numbers"),
    "too few": (lambda p, c: [1.0], "returned shape (1,) for 2 completions"),
    "too many": (lambda p, c: np.zeros(3), "returned shape (3,) for 2 completions"),
    "a column": (lambda p, c: np.zeros((2, 1)), "returned shape (2, 1)"),
    "a number": (lambda p, c: 1.0, "returned shape ()"),
    "nothing": (lambda p, c: None, "they must be numbers"),
    "None inside": (lambda p, c: [None, 1.0], "they must be numbers"),
    "words": (lambda p, c: ["1.0", "2.0"], "they must be numbers"),
    "ragged": (lambda p, c: [[1.0], [1.0, 2.0]], "no row of numbers"),
    "complex": (lambda p, c: [1j, 2.0], "they must be numbers"),
    "a dict": (lambda p, c: {"a": 1.0}, "they must be numbers"),
}


def refused(act):
    """The one line with which a call is refused."""
    with pytest.raises(Exception) as caught:
        act()
    line = errors.sentence(caught.value)
    assert line is not None, f"a bug, not a sentence: {caught.value!r}"
    assert line and "\n" not in line and len(line) < 700
    return line


def resolved(folder, **changes):
    """The tiny recipe with some keys (sections joined by '__') changed, resolved."""
    config = tiny.get_config()
    with config.unlocked():
        config.align.methods = ("raw", "identity")
        for name, value in changes.items():
            section, _, key = name.rpartition("__")
            (config[section] if section else config)[key] = value
    return settings.resolve(config, folder)


# --- data ---------------------------------------------------------------------------------------------------------


def jsonl(folder, lines, **changes):
    """A config of a JSONL file with these lines, bytes or rows."""
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    learned = {"reward": "learned", "judge": "none", "data__name": "jsonl", "data__path": str(path)}
    return resolved(folder / "run", **{**learned, "tokenizer__kind": "word", **changes})


def rows(count, **columns):
    return [{**GOOD, "prompt": f"say hello to number {i}", **columns} for i in range(count)]


@pytest.mark.parametrize(("line", "words"), LINES.items(), ids=lambda x: repr(x)[:50])
def test_broken_lines_are_named_by_file_and_line(line, words, tmp_path):
    config = jsonl(tmp_path, [GOOD, line, GOOD])
    said = refused(lambda: experiment.open_experiment(config))
    assert str(tmp_path) in said and words in said


@pytest.mark.parametrize(
    ("lines", "changes", "words"),
    [
        ([], {}, "is empty"),
        ([b" ", b""], {}, "is empty"),
        (rows(8), {"reward": "gold"}, "config.reward is 'gold', and data source 'jsonl' has no gold reward"),
        (rows(8), {"judge": "gold"}, "config.judge is 'gold'"),
        (rows(8), {"data__judge_fraction": 1.0}, "has no preference pairs (config.reward is 'learned')"),
        (rows(8), {"judge": "learned", "data__judge_fraction": 0.0}, "has no preference pairs for a judge"),
        (rows(8), {"data__test_fraction": 0.0}, "has no held-out prompts"),
        (rows(8), {"data__test_fraction": 1.0}, "test_fraction is 1"),
        ([{"prompt": f"only a prompt {i}"} for i in range(8)], {"reward": "math:fsum"}, "has no demonstrations"),
        (rows(8), {"data__group_column": "tone"}, "no 'tone'"),
        (rows(8), {"data__chat_template": "nowhere.jinja"}, "nowhere.jinja"),
        (rows(8), {"data__path": "nowhere.jsonl"}, "data file 'nowhere.jsonl' does not exist"),
        (rows(8), {"data__path": ""}, "data"),
        (rows(8), {"tokenizer__path": "nowhere.model"}, "tokenizer path 'nowhere.model' holds no tokenizer"),
        (rows(8), {"tokenizer__vocab_size": 5}, "vocab_size"),
        (rows(8), {"tokenizer__kind": "bpe", "tokenizer__vocab_size": 20}, "vocab_size"),
        (rows(8), {"mesh__data": 3}, "config.mesh is {'data': 3"),
    ],
)  # fmt: skip
def test_data_that_a_later_stage_would_miss_are_refused_by_the_first(lines, changes, words, tmp_path):
    assert words in refused(lambda: experiment.open_experiment(jsonl(tmp_path, lines, **changes)))


@pytest.mark.parametrize("source", ["jsonl", "anthropic_hh", "tldr"])
def test_missing_files_of_every_source(source, tmp_path):
    judge = {"judge": "none", "reward": "learned", "data__cache_dir": str(tmp_path / "cache")}
    config = resolved(tmp_path / "run", data__name=source, data__path=str(tmp_path / "nowhere"), **judge)
    assert "nowhere" in refused(lambda: experiment.open_experiment(config))


def test_damaged_gzip(tmp_path):
    whole = gzip.compress("\n".join(map(json.dumps, rows(50))).encode())
    for content in (whole[:-30], whole[: len(whole) // 2]):
        (tmp_path / "data.jsonl.gz").write_bytes(content)
        config = jsonl(tmp_path, rows(8), data__path=str(tmp_path / "data.jsonl.gz"))
        assert "damaged or cut short" in refused(lambda config=config: experiment.open_experiment(config))


@pytest.mark.parametrize(
    "text",
    ["".join(map(chr, range(0x4E00, 0x4F40))), "🙂 " * 40, "a " * 40, "x" * 9000, "السلام عليكم " * 20],
    ids=["ideographs", "emoji", "words", "one huge word", "right to left"],
)
def test_prompts_over_the_limit_in_any_script(text, tmp_path):
    config = jsonl(tmp_path, [*rows(8), {**GOOD, "prompt": text}], tokenizer__kind="bpe", tokenizer__vocab_size=700)
    opened = experiment.open_experiment(config)
    held = any(prompt.text == text for prompt in opened.dataset.test_prompts)
    assert "the limit is 8" in refused(lambda: experiment.encode_split(opened, "test" if held else "train"))


def test_a_long_held_out_prompt_is_refused_before_training(tmp_path, monkeypatch):
    from infalign_jax.stages import sft

    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows(8))))
    (tmp_path / "test.jsonl").write_text(json.dumps({**GOOD, "prompt": "number " * 30}))
    config = jsonl(tmp_path, [], data__path=str(tmp_path))
    monkeypatch.setattr(sft, "fit", lambda *args, **kwargs: pytest.fail("training began"))
    assert "the limit is 8" in refused(lambda: sft.run(config))


def test_data_that_changed_under_a_workdir(tmp_path):
    experiment.open_experiment(jsonl(tmp_path, rows(8)))
    experiment.open_experiment(jsonl(tmp_path, rows(8)))
    assert "the data have changed" in refused(lambda: experiment.open_experiment(jsonl(tmp_path, rows(9))))


# --- rewards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reward", "words"), REWARDS.values(), ids=REWARDS)
def test_what_a_reward_must_not_return(reward, words):
    def act():
        rewards.score(
            reward, ["p", "q"], ["a", "b"], [True, True], truncated="as_is", penalty=0.0, where="align step 3"
        )

    line = refused(act)
    assert line.startswith("align step 3: ") and words in line


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    return 1 / 0", "raised ZeroDivisionError: division by zero"),
        ("    return [len(x.text) for x in completions]", "raised AttributeError"),
        ("    raise SystemError('two\\nlines')", "raised SystemError: two lines"),
    ],
)
def test_a_reward_that_raises_is_named_with_its_line(body, words, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"user_reward_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def f(prompts, completions):\n{body}\n")
    line = refused(lambda: rewards.python_reward(f"{name}:f")(["p"], ["c"]))
    assert line.startswith(f"the reward '{name}:f' ") and words in line and f"{name}.py:2" in line


def test_good_rewards_of_other_types_pass():
    for values in (
        [1, 2],
        [True, False],
        (0.5, 1.5),
        np.array([1.0, 2.0], np.float64),
        jnp.array([1, 2], jnp.bfloat16),
    ):
        act = rewards.score(
            lambda p, c, v=values: v, ["p", "q"], ["a", "b"], [1, 1], truncated="as_is", penalty=0, where=""
        )
        assert act.dtype == np.float32 and act.tolist() == [float(v) for v in values]


def test_a_metric_that_is_not_finite_stops_the_loop_and_keeps_the_checkpoint(tmp_path):
    state = {"step": jnp.zeros((), jnp.int32)}
    state = type("State", (), state)()

    def advance(step, state):
        return state, {"loss": jnp.float32(np.nan if step == 1 else 1.0)}

    def act():
        loop.train(state, advance, steps=3, title="sft", folder=tmp_path, manager=None, save_every=9, shown=("loss",))

    assert refused(act).startswith("sft: loss is nan at step 1")


# --- workdirs -----------------------------------------------------------------------------------------------------


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
    [(stage, earlier) for i, stage in enumerate(order.STAGES) for earlier in order.STAGES[:i]],
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
    assert all(f"[{i}/5] {stage}: done before" in said for i, stage in enumerate(order.STAGES, 1))
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
    assert f"{path} is damaged" in refused(lambda: calibrate._read(path, ("rewards", "ended")))
    np.savez(path, ended=np.ones((1, 1), bool))
    assert f"{path} is damaged" in refused(lambda: calibrate._read(path, ("rewards", "ended")))


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
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        assert f"workdir {folder} cannot be written" in refused(lambda folder=folder: run("run", folder))
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
    line = refused(lambda: calibrate._write(tmp_path / "table.npz", rewards=np.zeros((9, 9))))
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

"""Bad data and rewards: one sentence that says what is wrong, before anything is trained."""

import gzip
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from infalign_jax.stages import experiment
from infalign_jax.stages import reward as rewards
from infalign_jax.training import loop
from tests.refusals import refused, resolved

GOOD = {"prompt": "say hello to", "chosen": "the world", "rejected": "nobody"}
LINES = {  # one line of a JSONL file: words of the sentence
    b'{"prompt": "a", ': "data.jsonl:2: the line is not valid JSON",
    b"nonsense": "data.jsonl:2: the line is not valid JSON",
    b"[1, 2]": "data.jsonl:2: the line holds a JSON list",
    b"null": "data.jsonl:2: the line holds a JSON NoneType",
    b'{"prompt": '
    + b"[" * 100_000
    + b"]" * 100_000
    + b"}": "data.jsonl:2: the line is not valid JSON: maximum recursion depth",
    b'{"prompt": ' + b"9" * 5000 + b"}": "data.jsonl:2: the line is not valid JSON: Exceeds the limit",
    '{"prompt": "a"}'.encode("utf-16"): "data.jsonl:2: the line is not UTF-8",
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
        (rows(8), {"data__chat_template": "nowhere.jinja"}, "config.data.chat_template is 'nowhere.jinja'"),
        (rows(8), {"data__path": "nowhere.jsonl"}, "config.data.path is 'nowhere.jsonl', which does not exist"),
        (rows(8), {"data__path": ""}, "data"),
        (rows(8), {"tokenizer__path": "nowhere.model"}, "config.tokenizer.path is 'nowhere.model', which does not exist"),
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
    config = resolved(tmp_path / "run", data__name=source, data__path=str(tmp_path), **judge)
    assert str(tmp_path) in refused(lambda: experiment.open_experiment(config))


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
        ("    raise SystemExit(0)", "raised SystemExit: 0"),
    ],
)
def test_a_reward_that_raises_is_named_with_its_line(body, words, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"user_reward_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def f(prompts, completions):\n{body}\n")
    line = refused(lambda: rewards.python_reward(f"{name}:f")(["p"], ["c"]))
    assert line.startswith(f"the reward '{name}:f' ") and words in line and f"{name}.py:2" in line


@pytest.mark.parametrize("name", ["no_such_module:f", "math:no_such_function"])
def test_a_reward_that_is_not_there_is_named_without_places_in_our_code(name):
    line = refused(lambda: rewards.python_reward(name))
    assert line.startswith(f"{name!r} cannot be imported: ")
    assert line.endswith(("No module named 'no_such_module'", "has no attribute 'no_such_function'"))


def test_a_reward_in_the_current_folder_is_found(tmp_path, monkeypatch):
    """A console script does not look there by itself."""
    (tmp_path / "reward_of_this_folder.py").write_text(
        "def f(prompts, completions):\n    return [1.0] * len(prompts)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    assert rewards.python_reward("reward_of_this_folder:f")(["p"], ["c"]) == [1.0]


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

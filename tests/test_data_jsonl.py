"""The user's JSONL: every legal row shape against the rows it must become, every bad one against its message."""

import gzip
import json

import pytest

from infalign_jax.data import chat, dataset, jsonl, rows

OPTIONS = dict(
    train_prompts=0, test_prompts=0, test_fraction=0.25, judge_fraction=0.5, group_column="", chat_template=""
)
PLAIN = chat.renderer("")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write(path, items):
    text = "".join(item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def load(path, **change):
    return dataset.load("jsonl", path=str(path), seed=0, **{**OPTIONS, **change})


HUMAN = "\n\nHuman: Hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Say:"}, ("Say:", None, None, None)),
        ({"prompt": "Say:", "completion": " a\n"}, ("Say:", " a\n", None, None)),
        ({"prompt": "Say:", "chosen": " a", "rejected": " b"}, ("Say:", None, " a", " b")),
        ({"chosen": HUMAN + " a", "rejected": HUMAN + " b"}, (HUMAN, None, " a", " b")),
        (
            {"chosen": "The sky is blue", "rejected": "The sky is bluish green"},
            ("The sky is", None, " blue", " bluish green"),
        ),
        ({"prompt": [user("Hi")]}, (HUMAN, None, None, None)),
        ({"prompt": [user("Hi")], "completion": [assistant("a")]}, (HUMAN, " a", None, None)),
        ({"prompt": [user("Hi")], "completion": "a"}, (HUMAN, " a", None, None)),
        ({"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]}, (HUMAN, None, " a", " b")),
        ({"chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("b")]}, (HUMAN, None, " a", " b")),
        (
            {"prompt": "Hi", "chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), assistant("b")]},
            (HUMAN, None, " a", " b"),
        ),
    ],
)
def test_every_row_shape(row, expected):
    parsed = jsonl.parse_row({**row, "score": 3, "tags": ["x"]}, "f:1", PLAIN)
    assert parsed[:4] == expected
    assert parsed.columns == {"score": 3, "tags": ["x"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "needs 'prompt', or 'chosen' and 'rejected'; its keys are none"),
        ({"text": "x"}, "its keys are 'text'"),
        ({"prompt": "p", "chosen": "x"}, "has 'chosen' but no 'rejected'"),
        ({"prompt": "p", "rejected": "x"}, "has 'rejected' but no 'chosen'"),
        ({"prompt": 3}, "'prompt' has type int; it must be a string or a list of messages"),
        ({"prompt": None}, "'prompt' has type NoneType"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": "p", "completion": ""}, "the response 'completion' is empty"),
        ({"prompt": "p", "chosen": "x", "rejected": " "}, "the response 'rejected' is empty"),
        ({"prompt": []}, "'prompt' is an empty list"),
        ({"prompt": ["hi"]}, "'prompt' holds a message without a string 'role'"),
        ({"prompt": [{"role": "user"}]}, "without a string 'role' and a string 'content'"),
        ({"prompt": [user("Hi")], "completion": [user("a")]}, "must be one message of the assistant"),
        ({"prompt": [{"role": "robot", "content": "a"}]}, "message role is 'robot'"),
        ({"chosen": "alpha", "rejected": "beta"}, "do not begin with the same prompt"),
        ({"chosen": HUMAN + " a", "rejected": HUMAN.replace("Hi", "Ho") + " b"}, "do not begin with the same prompt"),
        (
            {"chosen": [user("a"), assistant("x")], "rejected": [user("b"), assistant("y")]},
            "the same messages up to the last",
        ),
        ({"chosen": HUMAN + " a", "rejected": [user("a")]}, "both be strings or both be message lists"),
    ],
)
def test_every_bad_row_is_named(tmp_path, row, message):
    path = write(tmp_path / "d.jsonl", [{"prompt": "fine"}, "\n", row])
    with pytest.raises(ValueError, match=rf"d\.jsonl:3: .*{message}"):
        load(path)


def preferences(numbers):
    return [
        {"prompt": f"Number {n}:", "chosen": " yes", "rejected": " no", "kind": "odd" if n % 2 else "even"}
        for n in numbers
    ]


def test_a_single_file_is_split_by_prompt(tmp_path):
    data = load(write(tmp_path / "d.jsonl.gz", preferences([*range(40), *range(40)])))
    train, test = ({prompt.text for prompt in prompts} for prompts in (data.train_prompts, data.test_prompts))
    assert (len(train), len(test), len(train & test)) == (30, 10, 0)
    reward, judge = ({row.prompt for row in rows} for rows in (data.preferences, data.judge_preferences))
    assert (len(reward), len(judge)) == (15, 15) and reward | judge == train
    assert {row.prompt for row in data.held_out_preferences} == test and len(data.held_out_preferences) == 20
    assert len(data.demonstrations) == 60 and data.judge is None
    again = load(tmp_path / "d.jsonl.gz")
    assert again.train_prompts == data.train_prompts and again.judge_preferences == data.judge_preferences


def test_a_folder_has_its_own_test_file(tmp_path, caplog):
    write(tmp_path / "train.jsonl", preferences(range(6)))
    write(tmp_path / "test.jsonl.gz", preferences(range(5, 8)))
    data = load(tmp_path)
    assert len(data.train_prompts) == 6 and [prompt.text for prompt in data.test_prompts] == ["Number 6:", "Number 7:"]
    assert "1 of 3 test rows were left out" in caplog.text


def test_columns_groups_and_limits(tmp_path):
    path = write(tmp_path / "d.jsonl", preferences(range(40)))
    data = load(path, group_column="kind", train_prompts=7, test_prompts=2)
    assert (len(data.train_prompts), len(data.test_prompts), len(data.preferences)) == (7, 2, 15)
    for prompt in data.train_prompts:
        assert prompt.group == prompt.columns["kind"] == ("odd" if int(prompt.text[7:-1]) % 2 else "even")
    with pytest.raises(ValueError, match="no 'topic', the key that group_column names"):
        load(path, group_column="topic")


def test_kinds_of_rows_may_be_mixed(tmp_path):
    data = load(
        write(tmp_path / "d.jsonl", [{"prompt": "a"}, {"prompt": "b", "completion": "x"}, *preferences([1])]),
        test_fraction=0,
    )
    assert (len(data.train_prompts), len(data.demonstrations)) == (3, 2)
    assert len(data.preferences) + len(data.judge_preferences) == 1 and data.test_prompts == []


def test_chat_template_writes_message_rows(tmp_path):
    pytest.importorskip("jinja2")
    (tmp_path / "t.jinja").write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] ")
    items = [{"prompt": [user("Hi")], "completion": [assistant("a")]}, {"prompt": "as it is", "completion": " b"}]
    data = load(write(tmp_path / "d.jsonl", items), chat_template=str(tmp_path / "t.jinja"), test_fraction=0)
    assert data.demonstrations == [("[user] Hi\n[assistant] ", "a"), ("as it is", " b")]


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.jsonl' does not exist"):
        load(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match=r"holds no train\.jsonl"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"empty\.jsonl' is empty"):
        load(write(tmp_path / "empty.jsonl", ["\n\n"]))
    with pytest.raises(ValueError, match=r"d\.jsonl:2: the line is not valid JSON: .* at column"):
        load(write(tmp_path / "d.jsonl", [{"prompt": "a"}, '{"prompt": "b"\n', {"prompt": "c"}]))
    with pytest.raises(ValueError, match=r"d\.jsonl:1: the line holds a JSON list"):
        load(write(tmp_path / "d.jsonl", ["[1]\n"]))
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.jsonl:1: the line is not UTF-8"):
        load(tmp_path / "latin.jsonl")
    whole = write(tmp_path / "whole.jsonl.gz", preferences(range(500))).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.gz:\d+: the gzip file is damaged"):
        load(tmp_path / "cut.jsonl.gz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_fraction": 1}, "test_fraction is 1"),
        ({"test_fraction": -0.1}, r"test_fraction is -0\.1"),
        ({"judge_fraction": "half"}, "judge_fraction is 'half'"),
        ({"train_prompts": -1}, "train_prompts is -1"),
        ({"chat_template": "/nowhere/t.jinja"}, "'/nowhere/t.jinja' does not exist"),
    ],
)
def test_bad_options_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "d.jsonl", preferences(range(4))), **change)


def test_line_numbers_count_blank_lines(tmp_path):
    path = write(tmp_path / "d.jsonl", ["\n", {"a": 1}, "\n", {"a": 2}])
    assert [(where.rsplit(":", 1)[1], row["a"]) for where, row in rows.read_rows(path)] == [("2", 1), ("4", 2)]

"""The TL;DR builder and source on generated files in the official layout."""

import json

import pytest

from infalign_jax.data import dataset, tldr_builder

OPTIONS = dict(train_prompts=0, test_prompts=0, judge_fraction=0.5)


def post(number):
    return {"id": f"t{number}", "subreddit": f"s{number % 2}", "title": f"Title {number}", "post": f"Body\n{number} é"}


def comparison(number, split="train", choice=1, texts=(" first", " second"), **info):
    summaries = [{"text": text, "policy": "p", "note": None} for text in texts]
    return {
        "info": post(number) | info,
        "summaries": summaries,
        "choice": choice,
        "worker": "w",
        "split": split,
        "extra": {},
    }


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prompt(number):
    return f"SUBREDDIT: r/s{number % 2}\n\nTITLE: Title {number}\n\nPOST: Body\n{number} é\n\nTL;DR:"


@pytest.fixture
def folder(tmp_path):
    news = comparison(0) | {"info": {"id": "n", "article": "News", "site": "cnn", "title": "T"}}
    dropped = [news, comparison(0, texts=(" ", " x")), comparison(0, texts=(" x", " x"))]
    write(tmp_path / "d/comparisons/batch3.json", [comparison(0, choice=0), comparison(1), *dropped])
    write(tmp_path / "d/comparisons/batch10.json", [comparison(2), comparison(1, "valid1"), comparison(3, "valid1")])
    for split, numbers in (("train", range(6)), ("valid", range(6, 8)), ("test", range(5, 9))):
        write(tmp_path / f"d/tldr_3_filtered/{split}.jsonl", [post(n) | {"summary": f" Sum {n}"} for n in numbers])
    return tmp_path / "d"


def load(folder, tmp_path, **change):
    return dataset.load("tldr", path=str(folder), seed=0, **{**OPTIONS, "cache_dir": str(tmp_path / "c"), **change})


def test_source(folder, tmp_path, caplog):
    data = load(folder, tmp_path)
    assert sorted(data.demonstrations) == sorted((prompt(n), f" Sum {n}") for n in range(6))
    pairs = {*data.preferences, *data.judge_preferences}
    assert pairs == {(prompt(0), " first", " second"), *((prompt(n), " second", " first") for n in (1, 2))}
    assert data.held_out_preferences == [(prompt(3), " second", " first")]
    assert {p.text: p.group for p in data.train_prompts} == {prompt(n): f"s{n % 2}" for n in range(6)}
    assert {p.text for p in data.test_prompts} == {prompt(n) for n in range(6, 9)}
    assert "3 of 6 rows dropped (1 empty response, 1 equal responses, 1 news article)" in caplog.text
    few = load(folder, tmp_path, train_prompts=2, test_prompts=1)
    assert (len(few.train_prompts), len(few.test_prompts), len(few.demonstrations)) == (2, 1, 6)


def test_builders_alone(folder, tmp_path):
    for config, sizes in (
        ("comparisons", {"train": 3, "valid1": 2}),
        ("demonstrations", {"train": 6, "valid": 2, "test": 4}),
    ):
        builder = tldr_builder.Tldr(path=folder, config=config, data_dir=tmp_path, file_format="array_record")
        builder.download_and_prepare()
        assert {name: split.num_examples for name, split in builder.info.splits.items()} == sizes


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (comparison(0) | {"choice": 2}, r"batch3\.json:2: 'choice' is 2"),
        (comparison(0) | {"summaries": []}, r"batch3\.json:2: a comparison needs an object 'info' and two 'summaries'"),
        (comparison(0, title=None), r"batch3\.json:2: 'title' has type NoneType"),
    ],
)
def test_broken_rows_are_named(folder, tmp_path, row, message):
    write(folder / "comparisons/batch3.json", [comparison(1), row])
    with pytest.raises(ValueError, match=message):
        load(folder, tmp_path)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match="data path is ''"):
        load("", tmp_path)
    with pytest.raises(ValueError, match=r"holds no comparisons/batch\*\.json"):
        load(tmp_path, tmp_path)
    (folder / "tldr_3_filtered/valid.jsonl").unlink()
    with pytest.raises(ValueError, match=r"valid\.jsonl' does not exist"):
        load(folder, tmp_path)
    write(folder / "comparisons/batch3.json", [comparison(1, "valid2")])
    (folder / "comparisons/batch10.json").unlink()
    write(folder / "tldr_3_filtered/valid.jsonl", [post(9) | {"summary": " s"}])
    with pytest.raises(ValueError, match="no comparison of the split 'train'"):
        load(folder, tmp_path)

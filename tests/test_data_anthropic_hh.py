"""The HH-RLHF builder and source on generated files in the official layout; on real files where they are at hand."""

import functools
import gzip
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from infalign_jax.data import anthropic_hh, dataset, hh_builder

OPTIONS = dict(subset="harmless_base", train_prompts=0, test_prompts=0, judge_fraction=0.5)
REAL = pathlib.Path(os.environ.get("INFALIGN_HH_PATH", pathlib.Path(__file__).parents[2] / "shared/data/hh-rlhf"))


def dialogue(question, answer, before=""):
    return f"{before}\n\nHuman: {question}\n\nAssistant:{answer}"


def pair(number, good=" Yes.", bad=" No."):
    earlier = dialogue("Hello, café?", " Hi 😀") if number % 2 else ""
    return {
        "chosen": dialogue(f"Question {number}", good, earlier),
        "rejected": dialogue(f"Question {number}", bad, earlier),
    }


def write(folder, split, rows, compress=True, subset="harmless-base"):
    path = folder / subset / f"{split}.jsonl{'.gz' if compress else ''}"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if compress else text.encode())
    return path


def quirks():
    """One pair of each kind that is dropped: (rows, reasons)."""
    differ = {"chosen": dialogue("a", " x"), "rejected": dialogue("b", " y")}
    rows = [differ, pair(100, good=" "), pair(101, bad=""), pair(102, bad=" Yes."), {"chosen": "x", "rejected": "y"}]
    return rows, {"prompts_differ": 1, "empty_response": 2, "equal_responses": 1, "no_assistant_turn": 1}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "hh", "train", [*map(pair, range(10)), *quirks()[0]])
    write(tmp_path / "hh", "test", [pair(9), pair(50), pair(51)], compress=False)
    return tmp_path / "hh"


def load(folder, tmp_path, **change):
    return dataset.load(
        "anthropic_hh", path=str(folder), seed=0, **{**OPTIONS, "cache_dir": str(tmp_path / "c"), **change}
    )


def test_splitting_keeps_every_character():
    chosen, rejected = (
        dialogue("b", " long\n\nanswer ", dialogue("a", " x")),
        dialogue("b", "", dialogue("a", " x")) + " z",
    )
    prompt, good, bad = hh_builder.split_pair(chosen, rejected)
    assert prompt + good == chosen and prompt + bad == rejected
    assert prompt.endswith("\n\nAssistant:") and good == " long\n\nanswer " and bad == " z"


def test_source_reads_pairs_and_drops_quirks_aloud(folder, tmp_path, caplog):
    data = load(folder, tmp_path)
    expected = {(dialogue(f"Question {n}", "", dialogue("Hello, café?", " Hi 😀") if n % 2 else "")) for n in range(10)}
    assert {prompt.text for prompt in data.train_prompts} == {row.prompt for row in data.demonstrations} == expected
    assert {row.response for row in data.demonstrations} == {" Yes."}
    reward, judge = ({row.prompt for row in rows} for rows in (data.preferences, data.judge_preferences))
    assert len(reward) == len(judge) == 5 and reward | judge == expected
    assert all((row.chosen, row.rejected) == (" Yes.", " No.") for row in data.preferences)
    assert sorted("Question 50" in row.prompt for row in data.held_out_preferences) == [False, True]
    assert len(data.held_out_preferences) == len(data.test_prompts) == 2
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "5 of 15 rows dropped (2 empty response, 1 equal responses, 1 no assistant turn, 1 prompts differ)" in said
    assert "1 of 3 test rows were left out" in said


def test_second_load_reads_the_cache_and_says_the_counts_again(folder, tmp_path, caplog):
    first = load(folder, tmp_path)
    prepared = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*.array_record*")}
    caplog.clear()
    second = load(folder, tmp_path)
    assert second.preferences == first.preferences and second.train_prompts == first.train_prompts
    assert "5 of 15 rows dropped" in caplog.text
    assert (
        prepared and {path: path.stat().st_mtime_ns for path in (tmp_path / "c").rglob("*.array_record*")} == prepared
    )


def test_a_changed_file_is_prepared_anew(folder, tmp_path):
    load(folder, tmp_path)
    write(folder, "train", map(pair, range(4)))
    assert len(load(folder, tmp_path).train_prompts) == 4


def test_limits_and_judge_share(folder, tmp_path):
    data = load(folder, tmp_path, train_prompts=3, test_prompts=1, judge_fraction=0)
    assert (len(data.train_prompts), len(data.test_prompts)) == (3, 1)
    assert (len(data.preferences), len(data.judge_preferences), len(data.demonstrations)) == (10, 0, 10)


def test_builder_alone(folder, tmp_path):
    builder = hh_builder.AnthropicHh(
        path=str(folder), config="harmless_base", data_dir=tmp_path, file_format="array_record"
    )
    builder.download_and_prepare()
    assert builder.info.metadata["train"] == {"rows": 15, **quirks()[1]}
    rows = builder.as_data_source(split="train")
    assert len(rows) == 10 and set(rows[0]) == {"prompt", "chosen", "rejected"}
    assert set(hh_builder.AnthropicHh.builder_configs) == set(hh_builder.CONFIGS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([pair(1), '{"chosen": \n'], r"train\.jsonl\.gz:2: the line is not valid JSON"),
        ([{"chosen": "x"}], r"train\.jsonl\.gz:1: the row has no key 'rejected'"),
        ([{"chosen": 3, "rejected": "x"}], r"train\.jsonl\.gz:1: 'chosen' has type int"),
        ([], r"train\.jsonl\.gz' is empty"),
    ],
)
def test_broken_files_are_named(tmp_path, rows, message):
    write(tmp_path, "train", rows)
    write(tmp_path, "test", [pair(1)])
    with pytest.raises(ValueError, match=message):
        load(tmp_path, tmp_path)


def test_missing_files_and_bad_options_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"helpful-base/train\.jsonl\.gz' does not exist"):
        load(folder, tmp_path, subset="helpful_base")
    with pytest.raises(ValueError, match="subset is 'harmful'; it is one of helpful_base"):
        load(folder, tmp_path, subset="harmful")
    with pytest.raises(ValueError, match=r"judge_fraction is 1\.5"):
        load(folder, tmp_path, judge_fraction=1.5)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The folder `tmp_path/site` served as the official location."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "site")
    handler.log_message = None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(hh_builder, "BASE_URL", f"http://127.0.0.1:{httpd.server_address[1]}")
        yield tmp_path / "site"
        httpd.shutdown()


def _publish(site, monkeypatch, row_count, subset="harmless-base"):
    write(site, "train", map(pair, range(6)), subset=subset)
    test = write(site, "test", map(pair, range(20, 23)), subset=subset).read_bytes()
    monkeypatch.setitem(hh_builder.CHECKSUMS, f"{subset}/test.jsonl.gz", (hashlib.sha256(test).hexdigest(), len(test)))
    monkeypatch.setitem(hh_builder.ROW_COUNTS, f"{subset}/train.jsonl.gz", row_count)


def test_downloads_are_verified(server, tmp_path, monkeypatch, caplog):
    _publish(server, monkeypatch, row_count=6)
    data = load("", tmp_path)
    assert (len(data.train_prompts), len(data.test_prompts)) == (6, 3)
    assert (
        "harmless-base/train.jsonl.gz: no checksum of this file is known; verified by its 6 rows alone" in caplog.text
    )


def test_downloads_with_another_row_count_or_checksum_are_refused(server, tmp_path, monkeypatch):
    _publish(server, monkeypatch, row_count=7)
    with pytest.raises(ValueError, match=r"harmless-base/train\.jsonl\.gz' has 6 rows; the official file has 7"):
        load("", tmp_path)
    _publish(server, monkeypatch, row_count=6)
    monkeypatch.setitem(hh_builder.CHECKSUMS, "harmless-base/test.jsonl.gz", ("0" * 64, 1))
    with pytest.raises(ValueError, match=r"harmless-base/test\.jsonl\.gz' has SHA-256"):
        load("", tmp_path)


def test_a_refused_download_is_fetched_again(server, tmp_path, monkeypatch):
    _publish(server, monkeypatch, row_count=6)
    good = (server / "harmless-base/train.jsonl.gz").read_bytes()
    write(server, "train", map(pair, range(5)))
    with pytest.raises(ValueError, match="has 5 rows"):
        load("", tmp_path)
    (server / "harmless-base/train.jsonl.gz").write_bytes(good)
    assert len(load("", tmp_path).train_prompts) == 6


def test_a_failed_download_says_what_to_do(server, tmp_path):
    with pytest.raises(ValueError, match=r"could not download http://127.*give a local folder"):
        load("", tmp_path)


def test_every_official_file_can_be_verified():
    names = {f"{folder}/{split}.jsonl.gz" for folder in hh_builder.CONFIGS.values() for split in ("train", "test")}
    assert set(hh_builder.CHECKSUMS) | set(hh_builder.ROW_COUNTS) == names
    assert not set(hh_builder.CHECKSUMS) & set(hh_builder.ROW_COUNTS)


def test_tensorflow_is_not_imported(folder, tmp_path):
    code = (
        "import sys; from infalign_jax.data import dataset; "
        f"dataset.load('anthropic_hh', path={str(folder)!r}, seed=0, cache_dir={str(tmp_path)!r}, **{OPTIONS!r}); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.skipif(not (REAL / "harmless-base").is_dir(), reason="no real HH-RLHF files at hand (INFALIGN_HH_PATH)")
def test_real_files(tmp_path):
    data = load(REAL, tmp_path)
    builder = anthropic_hh.prepare_hh(str(REAL), "harmless_base", str(tmp_path / "c"))
    counts = builder.info.metadata["train"]
    kept = counts["rows"] - sum(count for reason, count in counts.items() if reason != "rows")
    assert (
        len(data.demonstrations) == len(data.preferences) + len(data.judge_preferences) == kept > 0.98 * counts["rows"]
    )
    assert not {row.prompt for row in data.preferences} & {row.prompt for row in data.judge_preferences}
    assert all(
        row.prompt.startswith("\n\nHuman:") and row.prompt.endswith("\n\nAssistant:") for row in data.demonstrations
    )

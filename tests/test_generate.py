"""`infalign generate`: what it reads, what it chooses, what it writes."""

import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
pytest.importorskip("safetensors")

from infalign_jax import generate, main
from tests import hf_model

TEXTS = ["the red fox runs", "a blue bird sings well", "fox and bird"]
REWARD = "tests.test_generate:letters"


def letters(prompts, completions):
    return [len(text) + 0.01 * len(prompt) for prompt, text in zip(prompts, completions, strict=True)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return hf_model.write(tmp_path_factory.mktemp("hf") / "model", hf_model.GEMMA2, TEXTS)


def run(tmp_path, policy, *words):
    out = tmp_path / "out.jsonl"
    flags = ["--policy", str(policy), f"--reward={REWARD}", f"--out={out}", "--max_tokens=4", "--batch=2"]
    main.main(["generate", *flags, *words])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_best_and_worst_of_the_same_candidates(policy, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the red"}\n{"prompt": "a blue bird"}\n{"prompt": "fox"}\n')
    words = [f"--prompts={tmp_path / 'prompts.jsonl'}", f"--reference={policy}", "--rollouts=16"]
    best = run(tmp_path, policy, *words, "--procedure=best_of(4)")
    worst = run(tmp_path, policy, *words, "--procedure", "worst_of(4)")
    assert [row["prompt"] for row in best] == ["the red", "a blue bird", "fox"]
    for high, low in zip(best, worst, strict=True):
        assert high["candidates"] == low["candidates"] and len(high["candidates"]) == 4
        rewards = [candidate["reward"] for candidate in high["candidates"]]
        assert rewards == pytest.approx(letters([high["prompt"]] * 4, [c["completion"] for c in high["candidates"]]))
        assert (high["reward"], low["reward"]) == (max(rewards), min(rewards))
        order = np.argsort(rewards, kind="stable")
        assert np.all(np.diff([high["candidates"][i]["calibrated"] for i in order]) >= 0)
        assert all(0 <= c["calibrated"] <= 1 and isinstance(c["ended"], bool) for c in high["candidates"])
    assert len({c["completion"] for row in best for c in row["candidates"]}) > 4  # not one response over and over


def test_text_lines_and_no_reference(policy, tmp_path, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("the red\n\nfox\n"))
    rows = run(tmp_path, policy)
    assert [row["prompt"] for row in rows] == ["the red", "fox"]
    for row in rows:
        assert row["calibrated"] is None and len(row["candidates"]) == 1
        assert row["completion"] == row["candidates"][0]["completion"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward=x:y"], "--policy is missing"),
        (["--policy=p", "--reward=x:y", "--max_tokens=0"], "--max_tokens is 0"),
        (["--policy=p", "--reward=x:y", "--seed=x"], "--seed is 'x'; it must be a whole number"),
        (["--policy=p", "--reward=x:y", "--seed"], "--seed has no value"),
        (["--polcy=p"], "no flag '--polcy=p'"),
        (["--policy=p", "--reward=x:y", "--prompts=nowhere.txt"], "'nowhere.txt', which cannot be read"),
        (["--policy=p", "--reward=gold", "--prompts=PROMPTS"], "'module:function' or 'hf:FOLDER'"),
        (["--policy=p", "--reward=x:y", "--prompts=EMPTY"], "holds no prompt"),
        (["--policy=p", f"--reward={REWARD}", "--prompts=PROMPTS"], "holds no policy"),
        (["--policy=p", f"--reward={REWARD}", "--prompts=PROMPTS", "--procedure=median_of(3)"], "median_of"),
    ],
)
def test_what_is_wrong_is_said(words, message, tmp_path):
    for name, text in (("PROMPTS", "the red\n"), ("EMPTY", "\n")):
        (tmp_path / name).write_text(text)
        words = [word.replace(f"={name}", f"={tmp_path / name}") for word in words]
    with pytest.raises(ValueError) as raised:
        generate.main(words)
    assert message in str(raised.value)

"""`infalign generate`: what it reads, what it chooses, what it writes."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
pytest.importorskip("safetensors")

from infalign_jax import generate, main
from infalign_jax.core.calibration import calibrate as core_calibrate
from infalign_jax.generate import rewards
from infalign_jax.models import heads, transformer
from infalign_jax.stages import calibrate, experiment, policies, settings
from infalign_jax.stages.reward import learned_reward
from infalign_jax.training import checkpoints, workdir
from tests import hf_model, tiny

TEXTS = ["the red fox runs", "a blue bird sings well", "fox and bird"]
REWARD = "tests.test_generate:letters"


BLOCKWISE = ["--policy=p", f"--reward={REWARD}", "--prompts=PROMPTS", "--scorer=s"]


def letters(prompts, completions):
    return [len(text) + 0.01 * len(prompt) for prompt, text in zip(prompts, completions, strict=True)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return hf_model.write(tmp_path_factory.mktemp("hf") / "model", hf_model.GEMMA2, TEXTS)


def run(tmp_path, policy, *words, reward=REWARD):
    out = tmp_path / "out.jsonl"
    flags = ["--policy", str(policy), f"--reward={reward}", f"--out={out}", "--max_tokens=4", "--batch=2"]
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


def test_without_a_reward_the_same_responses_come_unscored(policy, tmp_path):
    (tmp_path / "prompts.txt").write_text("the red\nfox\n")
    words = f"--prompts={tmp_path / 'prompts.txt'}"
    scored, plain = run(tmp_path, policy, words), run(tmp_path, policy, words, reward="")
    assert [row["completion"] for row in plain] == [row["completion"] for row in scored]
    assert all(row["reward"] is None is row["calibrated"] for row in plain)


def test_responses_end_before_the_stop_text(policy, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the red"}\n{"prompt": "a blue bird"}\n')
    words = [f"--prompts={tmp_path / 'prompts.jsonl'}", "--procedure=best_of(4)"]
    plain = [[c["completion"] for c in row["candidates"]] for row in run(tmp_path, policy, *words)]
    stop = max(plain[0], key=len)[1:3]
    cut = run(tmp_path, policy, *words, "--stop", stop)
    found = [[c["completion"] for c in row["candidates"]] for row in cut]
    assert found == [[text.split(stop)[0] for text in row] for row in plain] and found != plain
    assert all(
        c["reward"] == pytest.approx(letters([r["prompt"]], [c["completion"]])[0]) for r in cut for c in r["candidates"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward=x:y"], "--policy is missing"),
        ([*BLOCKWISE, "--procedure=blockwise(2,3)", "--stop=x"], "--stop is 'x'; blockwise"),
        (
            ["--policy=p", "--prompts=PROMPTS", "--procedure=best_of(4)"],
            "--reward is missing, and best_of(4) has no use",
        ),
        (["--policy=p", "--prompts=PROMPTS", "--reference=p"], "--reward is missing, and --reference has no use"),
        (["--policy=p", "--reward=x:y", "--max_tokens=0"], "--max_tokens is 0"),
        (["--policy=p", "--reward=x:y", "--seed=x"], "--seed is 'x'; it must be a whole number"),
        (["--policy=p", "--reward=x:y", "--seed"], "--seed has no value"),
        (["--polcy=p"], "no flag '--polcy=p'"),
        (["--policy=p", "--reward=x:y", "--prompts=nowhere.txt"], "'nowhere.txt', which cannot be read"),
        (["--policy=p", "--reward=gold", "--prompts=PROMPTS"], "'hf:FOLDER' or a workdir's reward_model folder"),
        (["--policy=p", "--reward=x:y", "--prompts=EMPTY"], "holds no prompt"),
        (["--policy=p", f"--reward={REWARD}", "--prompts=PROMPTS"], "holds no policy"),
        (["--policy=p", f"--reward={REWARD}", "--prompts=PROMPTS", "--procedure=median_of(3)"], "median_of"),
        (
            ["--policy=p", f"--reward={REWARD}", "--prompts=PROMPTS", "--procedure=blockwise(2,3)"],
            "needs a workdir's pre",
        ),
        (["--policy=p", f"--reward={REWARD}", "--prompts=PROMPTS", "--scorer=s"], "and the others none"),
        ([*BLOCKWISE, "--procedure=blockwise(2)"], "takes two whole numbers"),
        ([*BLOCKWISE, "--procedure=blockwise(0,2)"], "takes two whole numbers"),
        (["--policy=p", "--reward=EMPTY_FOLDER", "--prompts=PROMPTS"], "sft/model.json does not exist"),
    ],
)
def test_what_is_wrong_is_said(words, message, tmp_path):
    (tmp_path / "EMPTY_FOLDER" / "variables").mkdir(parents=True)
    (tmp_path / "EMPTY_FOLDER" / "done.json").write_text("{}")
    for name, text in (("PROMPTS", "the red\n"), ("EMPTY", "\n"), ("EMPTY_FOLDER", None)):
        if text:
            (tmp_path / name).write_text(text)
        words = [word.replace(f"={name}", f"={tmp_path / name}") for word in words]
    with pytest.raises(ValueError) as raised:
        generate.main(words)
    assert message in str(raised.value)


# --- what a workdir brings ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir as runs leave it, its parameters random: policy, reward model, scorer, table and quantile head."""
    folder = tmp_path_factory.mktemp("generate") / "run"
    config = tiny.get_config()
    with config.unlocked():
        config.reward, config.amortize.enabled, config.prefix_scorer.enabled = "learned", True, True
        config.amortize.levels, config.calibrate.rollouts = 8, 16
    config = settings.resolve(config, folder)
    with workdir.claim(config.to_dict()):
        found = experiment.open_experiment(config)
    trunk = transformer.init(found.model, jax.random.key(0))
    policies.describe(found, folder / "sft")
    heads_of = {
        "sft": trunk,
        "reward_model": heads.add_head(found.model, trunk, jax.random.key(1)),
        "prefix_scorer": heads.add_head(found.model, trunk, jax.random.key(2)),
        "amortize": heads.add_quantile_head(found.model, trunk, np.linspace(-2, 2, 8), 1.0),
    }
    for name, variables in heads_of.items():
        checkpoints.save_variables(folder / name / "variables", variables)
        workdir.finish(folder / name, {}, 0.0)
    prompts = experiment.encode_split(found, "train").texts
    rewards = np.sort(np.random.default_rng(0).normal(size=(len(prompts), 16)).astype(np.float32), 1)
    (folder / "calibrate").mkdir()
    calibrate.write_arrays(
        folder / "calibrate" / "table.npz", rewards=rewards, held_out=rewards[:, :2], truncated=rewards[:, 0] * 0
    )
    workdir.write_json(folder / "calibrate" / "provenance.json", calibrate.provenance(config))
    workdir.write_json(folder / "calibrate" / calibrate.PROMPTS, {"prompts": prompts})
    return found, rewards, prompts


def workdir_run(tmp_path, trained, prompts, *words, reward="reward_model"):
    folder = trained[0].workdir
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    spec = str(folder / reward) if ":" not in reward else reward
    return run(tmp_path, folder / "sft", f"--prompts={tmp_path / 'prompts.txt'}", *words, reward=spec)


def test_our_reward_model_scores_as_in_its_run_whatever_the_policy_reads(trained, policy, tmp_path):
    found, _, prompts = trained
    texts = ["rose seed", "oven", "wave reef tide"]
    expected = learned_reward(found, found.workdir / "reward_model")(prompts[:3], texts)
    reward = rewards.open_reward(str(found.workdir / "reward_model"))
    np.testing.assert_allclose(reward(prompts[:3], texts), expected, rtol=1e-5, atol=1e-6)
    assert len(set(expected.round(4))) == 3
    (tmp_path / "prompts.txt").write_text("the red\n")
    (row,) = run(tmp_path, policy, f"--prompts={tmp_path / 'prompts.txt'}", reward=str(found.workdir / "reward_model"))
    assert row["reward"] == pytest.approx(float(reward(["the red"], [row["completion"]])[0]), rel=1e-5)


def test_a_prompt_of_the_table_is_calibrated_by_its_row_and_others_by_what_there_is(trained, tmp_path, caplog):
    found, table, prompts = trained
    asked = [prompts[5], "garden unheard :"]
    words = ["--procedure=best_of(3)", f"--table={found.workdir / 'calibrate'}"]

    def u(row, by):
        return [float(np.mean((by < c["reward"]) + 0.5 * (by == c["reward"]))) for c in row["candidates"]]

    with_head = workdir_run(tmp_path, trained, asked, *words)
    assert [row["calibrated_by"] for row in with_head] == ["table", "head"]
    assert [c["calibrated"] for c in with_head[0]["candidates"]] == pytest.approx(u(with_head[0], table[5]))
    by_head = core_calibrate(
        np.array([c["reward"] for c in with_head[1]["candidates"]]), np.linspace(-2, 2, 8), tails="exponential"
    )
    assert [c["calibrated"] for c in with_head[1]["candidates"]] == pytest.approx(by_head.tolist(), abs=1e-3)

    both = workdir_run(tmp_path, trained, asked, *words, f"--reference={found.workdir / 'sft'}", "--rollouts=8")
    assert [row["calibrated_by"] for row in both] == ["table", "reference"]
    alone = workdir_run(tmp_path, trained, asked, words[0], f"--reference={found.workdir / 'sft'}", "--rollouts=8")
    assert [row["calibrated_by"] for row in alone] == ["reference", "reference"]
    assert both[0]["candidates"] == with_head[0]["candidates"] and both[1] == alone[1]

    done = found.workdir / "amortize" / "done.json"
    text = done.read_text()
    done.unlink()
    try:
        with caplog.at_level("WARNING"):
            without = workdir_run(tmp_path, trained, asked, *words, reward=REWARD)
    finally:
        done.write_text(text)
    assert [(row["calibrated_by"], row["calibrated"] is None) for row in without] == [("table", False), (None, True)]
    assert "1 of 2 prompts are not in the table" in caplog.text
    assert "was made with the reward 'learned'" in caplog.text
    with pytest.raises(ValueError, match=r"table\.npz does not exist; stage calibrate"):
        workdir_run(tmp_path, trained, asked, f"--table={found.workdir / 'sft'}")


def test_blockwise_with_one_long_block_is_best_of_n_by_the_scorer(trained, tmp_path):
    found, _, prompts = trained
    scorer = found.workdir / "prefix_scorer"
    best = workdir_run(tmp_path, trained, prompts[:3], "--procedure=best_of(4)", reward=REWARD)
    words = ["--procedure=blockwise(4, 9)", f"--scorer={scorer}"]
    rows = workdir_run(tmp_path, trained, prompts[:3], *words, reward=REWARD)
    for chosen, other in zip(best, rows, strict=True):
        (block,) = other["blocks"]
        assert block["candidates"] == [c["completion"] for c in chosen["candidates"]]
        assert other["completion"] == block["candidates"][block["picked"]]
        assert block["values"][block["picked"]] == max(block["values"])
        assert len(other["candidates"]) == 1 and other["reward"] == other["candidates"][0]["reward"]


@pytest.mark.slow  # tests/test_blockwise.py looks closer
def test_blockwise_with_short_blocks_joins_them(trained, tmp_path):
    found, _, prompts = trained
    words = ["--procedure=blockwise(4,1)", f"--scorer={found.workdir / 'prefix_scorer'}"]
    rows = workdir_run(tmp_path, trained, prompts[:3], *words, reward=REWARD)
    for row in rows:
        assert 1 <= len(row["blocks"]) <= 4
        kept = [block["candidates"][block["picked"]] for block in row["blocks"]]
        assert row["completion"].split() == " ".join(kept).split()


def test_a_scorer_of_another_tokeniser_is_refused(trained, policy, tmp_path):
    (tmp_path / "prompts.txt").write_text("the red\n")
    words = [f"--prompts={tmp_path / 'prompts.txt'}", "--procedure=blockwise(2,2)"]
    with pytest.raises(ValueError, match="tokens of another tokeniser"):
        run(tmp_path, policy, *words, f"--scorer={trained[0].workdir / 'prefix_scorer'}")

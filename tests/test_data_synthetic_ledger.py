"""The tasks that only studies run: the ledger, and the quickstart's with a flaw planted in its reward."""

import numpy as np
import pytest

from infalign_jax import ledger_memory
from infalign_jax.data import dataset, length_flaw, synthetic_ledger, synthetic_ledger_runs

LEDGER = {"test_prompts": 40, "demonstrations_per_prompt": 3, "preferences_per_prompt": 2}


@pytest.fixture(scope="module")
def ledger():
    return dataset.load("synthetic_ledger", path="", seed=3, **LEDGER)


def test_ledger_rewards_by_hand(ledger):
    prompt = ledger.train_prompts[0].text
    client, goal, *_ = prompt.split()
    suits = synthetic_ledger._suiting(3)[synthetic_ledger.CLIENTS.index(client), synthetic_ledger.GOALS.index(goal)]
    good = [word for word, yes in zip(synthetic_ledger.ENTRIES, suits[:-1], strict=True) if yes]
    bad = next(word for word, yes in zip(synthetic_ledger.ENTRIES, suits[:-1], strict=True) if not yes)
    stake = synthetic_ledger.STAKES[synthetic_ledger.CLIENTS.index(client)]
    a, b, c = good[:3]
    expected = {
        "": 0,
        a: 1,
        f"{a} {b} {c}": 7,
        f"{a} {a}": 2,  # no two alike in a row: two runs of one
        f"{a} {b} {bad} {c}": 3 - 1 + 1,
        f"{bad} unheard": -2,
        " ".join([a, b] * 6): 2**12 - 1,
        " ".join([a, b] * 6 + [a]): 2**12 - 1 - 1,
    }
    np.testing.assert_array_equal(
        ledger.judge([prompt] * len(expected), list(expected)), [stake * x for x in expected.values()]
    )
    with pytest.raises(ValueError, match="'garden city bold :'"):
        ledger.judge(["garden city bold :"], [a])


def test_the_ledger_task_is_what_it_says(ledger):
    assert len(ledger.train_prompts) == 920 and len(ledger.test_prompts) == 40
    assert not {p.text for p in ledger.train_prompts} & {p.text for p in ledger.test_prompts}
    texts, responses = zip(*ledger.demonstrations, strict=True)
    rewards = ledger.judge(list(texts), list(responses))
    assert (rewards == np.round(rewards)).all()
    small = rewards[[text.split()[0] in ("baker", "potter") for text in texts]]  # stake 1
    assert len(np.unique(small)) < len(small) / 4  # ties
    assert small.max() > 20 * np.median(small)  # a heavy tail
    lengths = [len(text.split()) for text in responses]
    assert min(lengths) == 6 and max(lengths) == 12
    assert ledger == dataset.load("synthetic_ledger", path="", seed=3, **LEDGER)
    for row in ledger.preferences[:200]:
        assert np.diff(ledger.judge([row.prompt] * 2, [row.rejected, row.chosen]))[0] >= 0
    for change, words in (
        ({"path": "x"}, "path is 'x'"),
        ({"test_prompts": 960}, "at most 959"),
        ({"test_prompts": 0}, "0"),
    ):
        with pytest.raises(ValueError, match=words):
            dataset.load("synthetic_ledger", **{"path": "", "seed": 0, **LEDGER, **change})


def test_a_speaker_who_looks_back(ledger):
    """The same prompts and rewards, and entries that suit as often as the table says after each run."""
    other = dataset.load("synthetic_ledger_runs", path="", seed=3, **{**LEDGER, "demonstrations_per_prompt": 20})
    assert other.train_prompts == ledger.train_prompts and other.test_prompts == ledger.test_prompts
    texts, responses = zip(*other.demonstrations, strict=True)
    np.testing.assert_array_equal(other.judge(texts[:50], responses[:50]), ledger.judge(texts[:50], responses[:50]))
    told = ledger_memory.entries(responses, synthetic_ledger.suiting(3, texts))
    for run, chance in enumerate(synthetic_ledger_runs.SUITS_AFTER):
        after = told.suits_NT[told.live_NT & (told.run_NT == run)]
        assert after.mean() == pytest.approx(chance, abs=5 * np.sqrt(chance * (1 - chance) / len(after)))
    assert told.repeats_NT.any() and set(told.live_NT.sum(1)) == set(synthetic_ledger.LENGTHS)
    with pytest.raises(ValueError, match="path is 'x'"):
        dataset.load("synthetic_ledger_runs", path="x", seed=3, **LEDGER)


def test_the_planted_flaw_is_about_long_answers_alone():
    prompts, answers = ["garden ocean bold :"] * 2, ["rose seed hedge soil", "rose seed hedge soil fern wave"]
    proxy, truth = length_flaw.rambles_seed_3(prompts, answers), length_flaw.brief_seed_3(prompts, answers)
    np.testing.assert_allclose(proxy - truth, [0.0, 2 * 2 * 6.0], atol=1e-5)
    with pytest.raises(AttributeError, match="rambles_seed_S"):
        _ = length_flaw.rambles

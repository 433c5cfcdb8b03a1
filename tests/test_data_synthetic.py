"""The synthetic task: gold reward against a word-by-word oracle, split, statistics of speaker and annotators."""

import time

import numpy as np
import pytest

from infalign_jax.data import dataset, synthetic

OPTIONS = dict(test_prompts=64, demonstrations_per_prompt=8, preferences_per_prompt=64)


@pytest.fixture(scope="module")
def data():
    return dataset.load("synthetic", path="", seed=3, **OPTIONS)


def test_split_covers_every_tone_and_never_overlaps(data):
    train, test = ({prompt.text for prompt in prompts} for prompts in (data.train_prompts, data.test_prompts))
    assert (len(train), len(test), len(train | test)) == (272, 64, 336)
    held_out = [prompt.group for prompt in data.test_prompts]
    assert {held_out.count(tone) for tone in synthetic.TONES} == {10, 11}
    assert {row.prompt for row in data.demonstrations} == {row.prompt for row in data.preferences} == train
    assert {row.prompt for row in data.held_out_preferences} == test


def test_the_seed_fixes_everything(data):
    again, other = (dataset.load("synthetic", path="", seed=seed, **OPTIONS) for seed in (3, 4))
    assert again.demonstrations == data.demonstrations and again.preferences == data.preferences
    assert again.train_prompts == data.train_prompts
    prompts, completions = zip(*data.demonstrations[:50], strict=True)
    assert np.array_equal(again.judge(prompts, completions), data.judge(prompts, completions))
    assert other.train_prompts != data.train_prompts and other.demonstrations != data.demonstrations
    assert not np.array_equal(other.judge(prompts, completions), data.judge(prompts, completions))


def test_gold_reward_equals_a_word_by_word_oracle(data):
    """Worths are read off one-word responses, then whole responses are recomputed in plain Python."""

    def quality_of_one(topic_pair, word):
        low, high = data.judge([f"{topic_pair} plain :"] * 2, ["", word]).astype(float)
        return (high - low) / synthetic.SCALES[0] + synthetic.OFF_TOPIC * synthetic.WEIGHTS.sum()

    pair = ("music", "winter")
    on_topic = set(synthetic.TOPICS["music"]) | set(synthetic.TOPICS["winter"])
    worth = {w: (quality_of_one("music winter", w) + synthetic.PER_WORD) / 4 for w in synthetic.WORDS}
    assert all((worth[w] > 0) == (w in on_topic) for w in synthetic.WORDS)
    prompts = ["music winter plain :"] * 300
    responses = synthetic.speak(prompts, np.random.default_rng(0))
    zero = data.judge(prompts[:1], [""])[0] / synthetic.SCALES[0] - synthetic.OFF_TOPIC * synthetic.WEIGHTS.sum()
    for response, reward in zip(responses, data.judge(prompts, responses), strict=True):
        words = response.split()
        expected = sum(weight * worth[word] for weight, word in zip(synthetic.WEIGHTS, words, strict=False))
        expected += synthetic.COVERS_BOTH * all(set(words) & set(synthetic.TOPICS[topic]) for topic in pair)
        expected -= synthetic.PER_WORD * len(words) + synthetic.PER_REPEAT * (len(words) - len(set(words)))
        assert reward / synthetic.SCALES[0] - zero == pytest.approx(expected, abs=1e-4)


def test_tones_differ_in_offset_and_scale_alone(data):
    """Same responses: rewards of two tones are an affine function of each other, forty times apart in spread."""
    responses = synthetic.speak(["ocean city plain :"] * 200, np.random.default_rng(1))
    plain, bold = (data.judge([f"ocean city {tone} :"] * 200, responses).astype(float) for tone in ("plain", "bold"))
    slope, intercept = np.polyfit(plain, bold, 1)
    assert slope == pytest.approx(40, rel=1e-4)
    np.testing.assert_allclose(slope * plain + intercept, bold, atol=1e-3)


def test_odd_completions_get_a_finite_reward_below_good_ones(data):
    odd = ["", "   ", "rose", "unheard", "rose rose rose rose rose", "rose " * 50, "\n\t☃", "garden plain :"]
    rewards = data.judge(["garden city bold :"] * len(odd), odd)
    assert np.isfinite(rewards).all() and rewards.dtype == np.float32
    assert rewards[0] == rewards[1] < rewards[3] < rewards[2]
    assert data.judge([], []).shape == (0,)


def test_judge_is_fast():
    """A hundred thousand pairs in about a second; the bound leaves room for a busy machine."""
    judge = synthetic.gold_reward(0)
    prompts = [f"garden city {tone} :" for tone in synthetic.TONES] * 16_667
    responses = synthetic.speak(prompts, np.random.default_rng(0))
    start = time.process_time()
    judge(prompts, responses)
    assert time.process_time() - start < 3


def test_speaker_statistics():
    """Word counts and topicality of 20,000 responses within 4 standard errors of the stated law."""
    n = 20_000
    responses = [r.split() for r in synthetic.speak(["forest travel warm :"] * n, np.random.default_rng(5))]
    lengths = np.bincount([len(words) for words in responses], minlength=6)[1:] / n
    law = synthetic.LENGTH_PROBABILITIES
    assert (abs(lengths - law) < 4 * np.sqrt(law * (1 - law) / n)).all()
    topical = set(synthetic.TOPICS["forest"]) | set(synthetic.TOPICS["travel"])
    share = np.mean([words[0] in topical for words in responses])
    expected = 0.6 + 0.4 * 10 / 40
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_annotators_follow_bradley_terry(data):
    """Per tone, the share of pairs in gold order equals the mean sigmoid(|margin|) within 4 standard errors."""
    for tone in synthetic.TONES:
        rows = [row for row in data.preferences if row.prompt.split()[2] == tone]
        prompts, chosen, rejected = zip(*rows, strict=True)
        margin = data.judge(prompts, chosen).astype(float) - data.judge(prompts, rejected)
        probability = 1 / (1 + np.exp(-abs(margin)))
        error = np.sqrt((probability * (1 - probability)).sum()) / len(rows)
        agrees = np.where(margin == 0, 0.5, margin > 0)
        assert abs(agrees.mean() - probability.mean()) < 4 * error + 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "somewhere"}, "somewhere"),
        ({"test_prompts": 5}, "test_prompts is 5"),
        ({"test_prompts": 336}, "at most 330"),
        ({"demonstrations_per_prompt": -1}, "demonstrations_per_prompt is -1"),
        ({"preferences_per_prompt": 1.5}, "preferences_per_prompt is 1.5"),
    ],
)
def test_bad_options_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        dataset.load("synthetic", **{"path": "", "seed": 0, **OPTIONS, **change})


def test_bad_prompts_are_named(data):
    with pytest.raises(ValueError, match="'garden :'"):
        data.judge(["garden :"], ["rose"])
    with pytest.raises(ValueError, match="2 prompts and 1 completions"):
        data.judge(["garden city bold :"] * 2, ["rose"])


def test_load_names_unknown_sources_and_options():
    with pytest.raises(
        ValueError, match="anthropic_hh, jsonl, synthetic, synthetic_ledger, synthetic_ledger_runs, tldr"
    ):
        dataset.load("nonsense", path="", seed=0)
    with pytest.raises(ValueError, match=r"does not take colour.*test_prompts"):
        dataset.load("synthetic", path="", seed=0, colour=1, **OPTIONS)
    with pytest.raises(ValueError, match="needs preferences_per_prompt, test_prompts"):
        dataset.load("synthetic", path="", seed=0, demonstrations_per_prompt=1)
    assert dataset.options_of("synthetic") == ["test_prompts", "demonstrations_per_prompt", "preferences_per_prompt"]


def test_texts_hold_no_held_out_prompt(data):
    texts = data.texts()
    assert len(texts) == len(set(texts))
    assert not {prompt.text for prompt in data.test_prompts} & set(texts)

"""A small task with a known gold reward on which raw rewards are badly calibrated across prompts, all from a seed.

A prompt is `topic topic tone :` (8 x 7 ordered topics x 6 tones = 336), a response 1 to 5 words of 40. Its gold reward:

    reward(prompt, response) = offset[tone] + scale[tone] * quality(topics, response)
    quality = sum_i weight_i * worth_i + COVERS_BOTH [both topics spoken of] - PER_WORD * words - PER_REPEAT * repeats

with weights 4, 2, 1, 1/2, 1/4 (the opening counts most), worth_i about 0.2 to 1 for a word of one of the two topics
and -0.6 times that for any other. Tones differ in offset and scale (0.15 to 6) alone, so all want the same responses
while raw rewards are spread forty times wider on one tone than on another.
"""

import functools

import numpy as np

from infalign_jax.data.dataset import Dataset, Demonstration, Preference, Prompt, require_count

TOPICS = {
    "garden": ("rose", "seed", "hedge", "soil", "fern"),
    "kitchen": ("oven", "spoon", "flour", "kettle", "plate"),
    "ocean": ("wave", "reef", "tide", "shell", "whale"),
    "music": ("drum", "chord", "tune", "harp", "choir"),
    "winter": ("snow", "frost", "sled", "scarf", "ice"),
    "city": ("tram", "tower", "street", "market", "bridge"),
    "forest": ("oak", "moss", "trail", "owl", "pine"),
    "travel": ("ticket", "map", "train", "hotel", "bag"),
}
TONES = ("plain", "calm", "warm", "brisk", "grand", "bold")
WORDS = tuple(word for words in TOPICS.values() for word in words)
WEIGHTS = np.array([4.0, 2.0, 1.0, 0.5, 0.25])
MAX_WORDS = len(WEIGHTS)
SCALES = np.geomspace(0.15, 6.0, len(TONES))
OFF_TOPIC = -0.6
COVERS_BOTH = 0.5
PER_WORD = 0.05
PER_REPEAT = 0.5
# The reference speaker: how often a word is on topic, and how many words are said.
ON_TOPIC_PROBABILITY = 0.6
LENGTH_PROBABILITIES = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
MAX_OFFSET = 4.0

_TOPIC_NAMES = tuple(TOPICS)
_WORDS_PER_TOPIC = len(TOPICS["garden"])
_WORD_IDS = {word: index for index, word in enumerate(WORDS)}
_ABSENT, _UNKNOWN = -1, len(WORDS)
_TOPIC_OF = np.append(np.repeat(np.arange(len(TOPICS)), _WORDS_PER_TOPIC), -1)  # the unknown word belongs to no topic


@functools.lru_cache(1, typed=True)  # every stage of a run opens the same data
def load(*, path, seed, test_prompts, demonstrations_per_prompt, preferences_per_prompt):
    """The synthetic task.

    Args:
      path: must be '' or None: nothing is read.
      seed: fixes word qualities, tone offsets, the split and every sampled response.
      test_prompts: how many of the 336 prompts are held out, spread evenly over the tones.
      demonstrations_per_prompt, preferences_per_prompt: per training prompt; held-out preferences use the same count.

    Returns:
      `Dataset` with the gold reward as judge and the tone as group of each prompt. Preferences are Bradley-Terry
      draws on the gold reward, P(a before b) = sigmoid(reward a - reward b): noisy on tones of small scale, nearly
      sure on the others.

    Raises:
      ValueError: a path was given, or a count is not an integer in its range.
    """
    if path:
        raise ValueError(f"data path is {path!r}; the synthetic source reads no file, so the path must be ''")
    count = require_count("test_prompts", test_prompts, len(TONES))
    if count > 336 - len(TONES):
        raise ValueError(
            f"test_prompts is {count}; it must leave a training prompt per tone, so at most {336 - len(TONES)}"
        )
    require_count("demonstrations_per_prompt", demonstrations_per_prompt)
    require_count("preferences_per_prompt", preferences_per_prompt)
    train, test = _split(seed, count)
    judge = gold_reward(seed)
    demonstration_prompts = [text for text in train for _ in range(demonstrations_per_prompt)]
    responses = speak(demonstration_prompts, np.random.default_rng([seed, 1]))
    return Dataset(
        demonstrations=[Demonstration(*row) for row in zip(demonstration_prompts, responses, strict=True)],
        preferences=_preferences(train, preferences_per_prompt, judge, np.random.default_rng([seed, 2])),
        judge_preferences=_preferences(train, preferences_per_prompt, judge, np.random.default_rng([seed, 3])),
        held_out_preferences=_preferences(test, preferences_per_prompt, judge, np.random.default_rng([seed, 4])),
        train_prompts=[Prompt(text, group=text.split()[2]) for text in train],
        test_prompts=[Prompt(text, group=text.split()[2]) for text in test],
        judge=judge,
    )


def gold_reward(seed):
    """The gold reward of the task of this seed, `judge(prompts, completions) -> float32 [n]`; see the module docstring.

    About 5 us a pair. Every completion gets a finite reward: an unknown word is worth OFF_TOPIC, words past the fifth
    cost only their length, and an empty completion is worth an unknown word in every position. An unknown prompt
    raises ValueError.
    """
    rng = np.random.default_rng([seed, 0])
    ladder = np.linspace(0.2, 1.0, _WORDS_PER_TOPIC)
    worths_V = np.append(np.concatenate([rng.permutation(ladder) for _ in TOPICS]), 1.0)
    # Without the jitter, words of equal rank in their topics would be interchangeable and rewards full of ties.
    worths_V[:-1] += rng.uniform(-0.04, 0.04, len(WORDS))
    offsets = rng.uniform(-MAX_OFFSET, MAX_OFFSET, len(TONES))

    def judge(prompts, completions):
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions; the counts must be equal")
        if not len(prompts):
            return np.zeros(0, np.float32)
        topics_N2, tones_N = _parse_prompts(prompts)
        unique, where_N = np.unique(np.asarray(completions, dtype=object), return_inverse=True)
        ids_UI, lengths_U = _parse_completions(unique.tolist())
        quality_N = _quality(topics_N2, ids_UI[where_N], lengths_U[where_N], worths_V)
        return (offsets[tones_N] + SCALES[tones_N] * quality_N).astype(np.float32)

    return judge


def _quality(topics_N2, ids_NI, lengths_N, worths_V):
    """Quality in tone-free units, float64 [N], within about [-8, 9]."""
    present_NI = ids_NI != _ABSENT
    first_NI, second_NI = (_TOPIC_OF[ids_NI] == topics_N2[:, j : j + 1] for j in (0, 1))
    worths_NI = worths_V[ids_NI] * np.where(first_NI | second_NI, 1.0, OFF_TOPIC)
    covers_N = first_NI.any(1) & second_NI.any(1)
    repeats_N = sum((present_NI[:, j] & (ids_NI[:, :j] == ids_NI[:, j : j + 1]).any(1)) for j in range(1, MAX_WORDS))
    quality_N = (
        (worths_NI * present_NI) @ WEIGHTS + COVERS_BOTH * covers_N - PER_WORD * lengths_N - PER_REPEAT * repeats_N
    )
    return np.where(lengths_N == 0, OFF_TOPIC * WEIGHTS.sum(), quality_N)


def _parse_completions(completions):
    """Word ids of the first five words, [U, 5] padded with _ABSENT, and the number of words [U]."""
    words = [completion.split() for completion in completions]
    padding = [_ABSENT] * MAX_WORDS
    rows = [([_WORD_IDS.get(word, _UNKNOWN) for word in row[:MAX_WORDS]] + padding)[:MAX_WORDS] for row in words]
    return np.array(rows), np.array([len(row) for row in words])


def _parse_prompts(prompts):
    """Topic ids [N, 2] and tone ids [N]."""
    parsed = np.array([_parse_prompt(text) for text in prompts])
    return parsed[:, :2], parsed[:, 2]


@functools.cache
def _parse_prompt(text):
    words = text.split()
    if len(words) != 4 or words[0] not in TOPICS or words[1] not in TOPICS or words[2] not in TONES or words[3] != ":":
        raise ValueError(f"prompt {text!r} is not of the synthetic task; it must read 'topic topic tone :'")
    return _TOPIC_NAMES.index(words[0]), _TOPIC_NAMES.index(words[1]), TONES.index(words[2])


def speak(prompts, rng):
    """One response of the reference speaker to each prompt, drawn without regard to quality."""
    n = len(prompts)
    if not n:
        return []
    topics_N2, _ = _parse_prompts(prompts)
    which_NI = rng.integers(0, 2, (n, MAX_WORDS))
    on_topic_NI = np.take_along_axis(topics_N2, which_NI, 1) * _WORDS_PER_TOPIC + rng.integers(
        0, _WORDS_PER_TOPIC, (n, MAX_WORDS)
    )
    any_NI = rng.integers(0, len(WORDS), (n, MAX_WORDS))
    ids_NI = np.where(rng.random((n, MAX_WORDS)) < ON_TOPIC_PROBABILITY, on_topic_NI, any_NI)
    lengths_N = rng.choice(np.arange(1, MAX_WORDS + 1), n, p=LENGTH_PROBABILITIES)
    words_NI = np.array(WORDS)[ids_NI].tolist()
    return [" ".join(row[:length]) for row, length in zip(words_NI, lengths_N.tolist(), strict=True)]


def _preferences(prompts, per_prompt, judge, rng):
    prompts = [text for text in prompts for _ in range(per_prompt)]
    first, second = speak(prompts, rng), speak(prompts, rng)
    margin_N = judge(prompts, first).astype(np.float64) - judge(prompts, second)
    first_wins_N = (
        rng.logistic(size=len(prompts)) < margin_N
    )  # a logistic variable is below m with probability sigmoid(m)
    rows = zip(prompts, first, second, first_wins_N.tolist(), strict=True)
    return [Preference(text, a, b) if wins else Preference(text, b, a) for text, a, b, wins in rows]


def _split(seed, test_count):
    """Training and held-out prompts; each tone holds out its share (shares differ by at most one)."""
    rng = np.random.default_rng([seed, 5])
    train, test = [], []
    for index, tone in enumerate(TONES):
        texts = [f"{a} {b} {tone} :" for a in TOPICS for b in TOPICS if a != b]
        held_out = test_count // len(TONES) + (index < test_count % len(TONES))
        order = rng.permutation(len(texts))
        test.extend(texts[i] for i in sorted(order[:held_out]))
        train.extend(texts[i] for i in sorted(order[held_out:]))
    return train, test

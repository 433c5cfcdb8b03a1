"""A second synthetic task, unlike the first: 960 prompts, long responses, discrete and heavy-tailed rewards with ties.

A prompt is `client goal month :` (8 x 10 x 12), a response a ledger of up to 12 entries of 24. Each client has eight entries
that suit the goal; a run of L suiting entries next to each other, no two of them alike in a row, is worth 2^L - 1, and

    reward(prompt, response) = stake[client] * (sum over runs of (2^L - 1) - LAPSE * unsuitable entries)

an integer. Most responses earn a few units and a rare one hundreds. Clients differ in their stake (1, 2, 5 and 20).
"""

import functools

import numpy as np

from infalign_jax.data.dataset import Dataset, Demonstration, Preference, Prompt, require_count

CLIENTS = ("baker", "tailor", "miller", "smith", "potter", "weaver", "cooper", "mason")
GOALS = ("save", "grow", "hedge", "lend", "repay", "store", "trade", "insure", "build", "rest")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
ENTRIES = (
    "cash", "bond", "loan", "rent", "wage", "duty", "sale", "cost", "gain", "loss", "fee", "levy", "stock", "grain",
    "wool", "iron", "salt", "wine", "oil", "wood", "clay", "coal", "silk", "tin",
)  # fmt: skip
STAKES = np.array([1, 2, 5, 20, 1, 2, 5, 20])
SUITING = 8
LAPSE = 1
MAX_ENTRIES = 12
# The reference speaker: how often an entry suits, and how many entries there are.
SUITING_PROBABILITY = 0.5
LENGTHS = np.arange(6, MAX_ENTRIES + 1)

_IDS = {word: index for index, word in enumerate(ENTRIES)}
_UNKNOWN = len(ENTRIES)


@functools.lru_cache(1, typed=True)  # every stage of a run opens the same data
def load(*, path, seed, test_prompts, demonstrations_per_prompt, preferences_per_prompt):
    """The ledger task, with the arguments and errors of `synthetic.load`.

    Returns:
      `Dataset` with the gold reward as judge and the client as group of each prompt. The annotator prefers the response of
      higher reward, and either of two that tie.
    """
    return spoken_by(speak, path, seed, test_prompts, demonstrations_per_prompt, preferences_per_prompt)


def spoken_by(speak, path, seed, test_prompts, demonstrations_per_prompt, preferences_per_prompt):
    """`load` with another speaker, `speak(prompts, suits, rng) -> responses`."""
    if path:
        raise ValueError(f"data path is {path!r}; the synthetic source reads no file, so the path must be ''")
    prompts = [f"{client} {goal} {month} :" for client in CLIENTS for goal in GOALS for month in MONTHS]
    count = require_count("test_prompts", test_prompts, 2)
    if count >= len(prompts):
        raise ValueError(f"test_prompts is {count}; it must leave a training prompt, so at most {len(prompts) - 1}")
    require_count("demonstrations_per_prompt", demonstrations_per_prompt)
    require_count("preferences_per_prompt", preferences_per_prompt)
    order = np.random.default_rng([seed, 5]).permutation(len(prompts))
    test, train = ([prompts[i] for i in sorted(part)] for part in (order[:count], order[count:]))
    judge, suits = gold_reward(seed), _suiting(seed)
    told = [text for text in train for _ in range(demonstrations_per_prompt)]
    responses = speak(told, suits, np.random.default_rng([seed, 1]))

    def preferences(texts, purpose):
        rng = np.random.default_rng([seed, purpose])
        return _preferences(texts, preferences_per_prompt, judge, functools.partial(speak, suits=suits, rng=rng), rng)

    return Dataset(
        demonstrations=[Demonstration(*row) for row in zip(told, responses, strict=True)],
        preferences=preferences(train, 2),
        judge_preferences=preferences(train, 3),
        held_out_preferences=preferences(test, 4),
        train_prompts=[Prompt(text, group=text.split()[0]) for text in train],
        test_prompts=[Prompt(text, group=text.split()[0]) for text in test],
        judge=judge,
    )


def suiting(seed, prompts):
    """Which entries suit each prompt of the task of this seed: bool [n, entries + 1], false for the unknown entry."""
    return _suiting(seed)[tuple(zip(*map(_parse, prompts), strict=True))]


def _suiting(seed):
    """Which entries suit a client's goal: bool [clients, goals, entries + 1], false for the unknown entry."""
    rng = np.random.default_rng([seed, 0])
    suits = np.zeros((len(CLIENTS), len(GOALS), len(ENTRIES) + 1), bool)
    for client, goal in np.ndindex(suits.shape[:2]):
        suits[client, goal, rng.permutation(len(ENTRIES))[:SUITING]] = True
    return suits


def gold_reward(seed):
    """The gold reward of the task of this seed, `judge(prompts, completions) -> float32 [n]`; see the module docstring.

    Every completion gets a finite reward: an unknown entry suits nobody, entries past the twelfth are unsuitable, an empty
    ledger is worth 0. An unknown prompt raises ValueError.
    """
    suits = _suiting(seed)

    def judge(prompts, completions):
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions; the counts must be equal")
        worth_N = [
            STAKES[client] * worth(completion, suits[client, goal])
            for (client, goal), completion in zip(map(_parse, prompts), completions, strict=True)
        ]
        return np.array(worth_N, np.float32)

    return judge


def entry_ids(completion):
    """The entries of a response as indices of `ENTRIES`, len(ENTRIES) for one that is unknown."""
    return [_IDS.get(word, _UNKNOWN) for word in completion.split()]


def worth(completion, suits):
    """The worth of a response in units of the client's stake; `suits`: bool by entry. See the module docstring."""
    total, run, last = 0, 0, None
    for place, entry in enumerate(entry_ids(completion)):
        if place >= MAX_ENTRIES or not suits[entry]:
            total, run = total + 2**run - 1 - LAPSE, 0
        elif entry == last:
            total, run = total + 2**run - 1, 1
        else:
            run += 1
        last = entry
    return total + 2**run - 1


@functools.cache
def _parse(text):
    words = text.split()
    if len(words) != 4 or words[0] not in CLIENTS or words[1] not in GOALS or words[2] not in MONTHS or words[3] != ":":
        raise ValueError(f"prompt {text!r} is not of the ledger task; it must read 'client goal month :'")
    return CLIENTS.index(words[0]), GOALS.index(words[1])


def speak(prompts, suits, rng):
    """One response of the reference speaker to each prompt, drawn without regard to runs."""
    n = len(prompts)
    own_NE = own_entries(prompts, suits)
    suiting_NI = np.take_along_axis(own_NE, rng.integers(0, SUITING, (n, MAX_ENTRIES)), 1)
    any_NI = rng.integers(0, len(ENTRIES), (n, MAX_ENTRIES))
    ids_NI = np.where(rng.random((n, MAX_ENTRIES)) < SUITING_PROBABILITY, suiting_NI, any_NI)
    lengths_N = rng.choice(LENGTHS, n)
    words_NI = np.array(ENTRIES)[ids_NI].tolist()
    return [" ".join(row[:length]) for row, length in zip(words_NI, lengths_N.tolist(), strict=True)]


def own_entries(prompts, suits):
    """The entries that suit each prompt, as indices [n, SUITING]."""
    own = [np.flatnonzero(suits[client, goal]) for client, goal in map(_parse, prompts)]
    return np.array(own, int).reshape(len(own), SUITING)


def _preferences(prompts, per_prompt, judge, speak, rng):
    texts = [text for text in prompts for _ in range(per_prompt)]
    first, second = speak(texts), speak(texts)
    margin_N = judge(texts, first) - judge(texts, second) if texts else np.zeros(0)
    first_wins_N = np.where(margin_N == 0, rng.random(len(texts)) < 0.5, margin_N > 0)
    rows = zip(texts, first, second, first_wins_N.tolist(), strict=True)
    return [Preference(text, a, b) if wins else Preference(text, b, a) for text, a, b, wins in rows]

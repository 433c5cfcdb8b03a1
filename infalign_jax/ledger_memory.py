"""`python -m infalign_jax.ledger_memory`: what policies can reach on `ledger`, by what of a ledger they look at."""

import pathlib
from typing import NamedTuple

import numpy as np

from infalign_jax import flags

PAGE = """python -m infalign_jax.ledger_memory [--kl X] [--chance X] [--policies FOLDER[,FOLDER...]]

  A ledger's worth lies in its runs of suiting entries. The first table has the win rates of the best policies on that task,
  each made for one procedure: among those whose entries depend on the prompt and their place alone, among those that also know
  the run so far, and among all. The reference draws every entry without regard to those before. Exact but for the reference
  being 100,000 draws of it; nothing is trained.

  The second one has, for every policy, how often an entry suits after 0, 1, 2, 3, 4 and more suiting entries in a row.

  --kl X           nats per sequence (0.5)
  --chance X       that an entry of the reference suits (0.667, the task's speaker; a policy's stands in the second table)
  --policies F     policies of the ledger task, such as a workdir's sft and 'align/optimal(best_of(4))/seed_0'
"""
PROCEDURES = ("standard", "best_of(4)", "worst_of(4)")
REFERENCE_DRAWS = 100_000
RUNS = 5  # 0, 1, 2, 3, 4 and more suiting entries so far
DRAWS = 32  # responses of a policy to each held-out prompt


class Ledgers(NamedTuple):
    """Responses, entry by entry.

    suits_NT: whether there is an entry and it suits.
    run_NT: suiting entries in a row before it, RUNS - 1 at most.
    repeats_NT: whether it suits and is the one before again, which begins another run.
    live_NT: whether there is an entry.
    """

    suits_NT: np.ndarray
    run_NT: np.ndarray
    repeats_NT: np.ndarray
    live_NT: np.ndarray


def main(words):
    """The command: prints both tables in Markdown."""
    if {"--help", "-h"} & set(words):
        return print(PAGE, end="")
    legal = {"kl": (0.5, float), "chance": (2 / 3, float), "policies": ("", str)}
    options = flags.parse("python -m infalign_jax.ledger_memory", words, legal)
    for name, most in (("kl", 4), ("chance", 1)):
        if not 0 < options[name] < most:
            raise ValueError(f"--{name} is {options[name]:g}; it must be above 0 and below {most}")
    from infalign_jax.reporting.study_tables import markdown

    policies = [[folder, "", *shares(of_policy(folder))] for folder in options["policies"].split(",") if folder]
    wins, laws = ceilings(options["kl"], options["chance"])
    print(markdown(["entries depend on", "best for", *PROCEDURES], wins))
    print()
    runs = [*map(str, range(RUNS - 1)), f"{RUNS - 1} and more"]
    print(markdown(["an entry suits after a run of", "best for", *runs], [*laws, *policies]))


def ceilings(kl, chance):
    """Rows of text, of the best policies by what they see and what they are for: win rates, and shares of suiting entries."""
    from infalign_jax.core import feature_optimum, optimal, procedures
    from infalign_jax.core.winrate import exact_win_rate
    from infalign_jax.data import synthetic_ledger as ledger

    suits = np.arange(len(ledger.ENTRIES) + 1) < ledger.SUITING  # which ones suit makes no difference
    texts = speak(chance)
    worth_N = np.array([ledger.worth(text, suits) for text in texts], float)
    equal_N = np.full(len(texts), 1 / len(texts))
    told = entries(texts, suits)
    length_NL = np.eye(ledger.MAX_ENTRIES)[told.live_NT.sum(1) - 1]
    by_place_NF = np.c_[told.suits_NT, length_NL]
    at_run_NRT = told.run_NT[:, None] == np.arange(RUNS)[:, None]
    by_run = [(mask_NT[:, None] & at_run_NRT).sum(2) for mask_NT in (told.live_NT, told.suits_NT)]
    by_run_NF = np.column_stack([by_place_NF, *by_run, told.repeats_NT.sum(1)])
    families = {"their place": by_place_NF, "place and run so far": by_run_NF}
    laws = [procedures.from_name(name) for name in PROCEDURES]
    wins, shown = [], [["the reference", "", *shares(told)]]
    for seen, features_NF in families.items():
        for law in laws:
            weights_N = feature_optimum.solve(law, worth_N, features_NF, kl).weights_N
            measured = [exact_win_rate(other, weights_N, equal_N, worth_N) for other in laws]
            wins.append([seen, law.name, *(f"{win:.3f}" for win in measured)])
            shown.append([seen, law.name, *shares(told, weights_N)])
    top = [optimal.optimal_transform(law, kl=kl).win_rate for law in laws]
    return [*wins, ["anything, without ties", "each", *(f"{win:.3f}" for win in top)]], shown


def speak(chance):
    """Responses of the reference: entries 0 to SUITING - 1 suit, and one of them is drawn with this chance."""
    from infalign_jax.data import synthetic_ledger as ledger

    rng, size = np.random.default_rng(0), (REFERENCE_DRAWS, ledger.MAX_ENTRIES)
    own_NT, other_NT = rng.integers(0, ledger.SUITING, size), rng.integers(ledger.SUITING, len(ledger.ENTRIES), size)
    words_NT = np.array(ledger.ENTRIES)[np.where(rng.random(size) < chance, own_NT, other_NT)].tolist()
    lengths_N = rng.choice(ledger.LENGTHS, REFERENCE_DRAWS).tolist()
    return [" ".join(row[:length]) for row, length in zip(words_NT, lengths_N, strict=True)]


def entries(texts, suits):
    """`Ledgers` of responses; `suits`: bool by entry, for all of them or one row for each."""
    from infalign_jax.data import synthetic_ledger as ledger

    suits_NE = np.broadcast_to(suits, (len(texts), len(ledger.ENTRIES) + 1))
    ids_NT = np.full((len(texts), ledger.MAX_ENTRIES), -1)
    for row_T, text in zip(ids_NT, texts, strict=True):
        ids = ledger.entry_ids(text)[: ledger.MAX_ENTRIES]
        row_T[: len(ids)] = ids
    live_NT = ids_NT >= 0
    suits_NT = np.take_along_axis(suits_NE, ids_NT, 1) & live_NT
    repeats_NT = suits_NT & (ids_NT == np.pad(ids_NT, ((0, 0), (1, 0)), constant_values=-1)[:, :-1])
    run_NT = np.zeros_like(ids_NT)
    for t in range(1, ids_NT.shape[1]):
        longer_N = np.where(repeats_NT[:, t - 1], 1, run_NT[:, t - 1] + 1)
        run_NT[:, t] = np.where(suits_NT[:, t - 1], longer_N, 0)
    return Ledgers(suits_NT, np.minimum(run_NT, RUNS - 1), repeats_NT, live_NT)


def shares(told, weights_N=1.0):
    """Texts: the chance that an entry suits, by the run before it, in `Ledgers` whose responses have weights."""
    suits_NT, live_NT = (mask_NT * np.reshape(weights_N, (-1, 1)) for mask_NT in (told.suits_NT, told.live_NT))
    counts = [(suits_NT[told.run_NT == run].sum(), live_NT[told.run_NT == run].sum()) for run in range(RUNS)]
    return [f"{suiting / entered:.3f}" if entered > 0 else "–" for suiting, entered in counts]


def of_policy(folder):
    """`Ledgers` of DRAWS responses of a policy to each held-out prompt of its run.

    Raises:
      ValueError: the folder is not of a run on the ledger task.
    """
    from infalign_jax.data import synthetic_ledger as ledger
    from infalign_jax.policy import load_policy
    from infalign_jax.training import workdir

    run = next((place for place in pathlib.Path(folder).absolute().parents if (place / "config.json").exists()), None)
    config = workdir.read_json(run / "config.json") if run else {}
    if not config.get("data", {}).get("name", "").startswith("synthetic_ledger"):
        raise ValueError(f"{folder} is no policy of a run on a ledger task (config.data.name=synthetic_ledger)")
    data = ledger.load(
        path="", seed=config["seed"], test_prompts=config["data"]["test_prompts"], demonstrations_per_prompt=1,
        preferences_per_prompt=1,
    )  # fmt: skip
    prompts = [prompt.text for prompt in data.test_prompts]
    drawn = load_policy(folder).generate(prompts, DRAWS, max_tokens=config["data"]["response_tokens"])
    suits_NE = np.repeat(ledger.suiting(config["seed"], prompts), DRAWS, 0)
    return entries([text for texts in drawn for text in texts], suits_NE)


if __name__ == "__main__":
    from infalign_jax.main import cli

    cli(main)

"""`python -m infalign_jax.ledger_memory`: what policies can reach on `ledger`, by what of a ledger they look at."""

import pathlib
import sys

import numpy as np

from infalign_jax import flags

PAGE = """python -m infalign_jax.ledger_memory [--kl X] [--policies FOLDER[,FOLDER...]]

  A ledger's worth lies in its runs of suiting entries. The first table has the win rates of the best policies on that task,
  each made for one procedure: among those whose entries depend on the prompt and their place alone, among those that also know
  the run so far, and among all. Exact but for the task's speaker being 100,000 draws of it; nothing is trained.

  The second one has, for every policy, how often an entry suits after 0, 1, 2, 3, 4 and more suiting entries in a row.

  --kl X           nats per sequence (0.5)
  --policies F     policies of the ledger task, such as a workdir's sft and 'align/optimal(best_of(4))/seed_0'
"""
PROCEDURES = ("standard", "best_of(4)", "worst_of(4)")
SPEAKER_DRAWS = 100_000
RUNS = 5  # 0, 1, 2, 3, 4 and more suiting entries so far
DRAWS = 32  # responses of a policy to each held-out prompt


def main(words):
    """The command: prints both tables in Markdown."""
    if {"--help", "-h"} & set(words):
        return print(PAGE, end="")
    options = flags.parse("ledger_memory", words, {"kl": (0.5, float), "policies": ("", str)})
    if not 0 < options["kl"] < 4:
        raise ValueError(f"--kl is {options['kl']:g}; it must be above 0 and below 4")
    from infalign_jax.reporting.study_tables import markdown

    wins, laws = ceilings(options["kl"])
    print(markdown(["entries depend on", "best for", *PROCEDURES], wins))
    print()
    laws += [[folder, "", *shares(*of_policy(folder))] for folder in options["policies"].split(",") if folder]
    runs = [*map(str, range(RUNS - 1)), f"{RUNS - 1} and more"]
    print(markdown(["an entry suits after a run of", "best for", *runs], laws))


def ceilings(kl):
    """Rows of text, of the best policies by what they see and what they are for: win rates, and shares of suiting entries."""
    from infalign_jax.core import feature_optimum, optimal, procedures
    from infalign_jax.core.winrate import exact_win_rate
    from infalign_jax.data import synthetic_ledger as ledger

    suits = np.arange(len(ledger.ENTRIES) + 1) < ledger.SUITING  # which ones suit makes no difference
    prompts, speaker_N = ["baker save jan :"] * SPEAKER_DRAWS, np.full(SPEAKER_DRAWS, 1 / SPEAKER_DRAWS)
    texts = ledger.speak(prompts, np.broadcast_to(suits, (1, 1, len(suits))), np.random.default_rng(0))
    worth_N = np.array([ledger.worth(text, suits) for text in texts], float)
    suits_NT, run_NT, repeats_NT, live_NT = entries(texts, suits)
    length_NL = np.eye(suits_NT.shape[1])[live_NT.sum(1) - 1]
    at_run_NRT = run_NT[:, None] == np.arange(RUNS)[:, None]
    by_place_NF = np.c_[suits_NT, length_NL]
    by_run = [(live_NT[:, None] & at_run_NRT).sum(2), (suits_NT[:, None] & at_run_NRT).sum(2), repeats_NT.sum(1)]
    families = {"their place": by_place_NF, "place and run so far": np.column_stack([by_place_NF, *by_run])}
    laws = [procedures.from_name(name) for name in PROCEDURES]
    wins, shown = [], [["the task's speaker", "", *shares(suits_NT, run_NT, live_NT, speaker_N)]]
    for seen, features_NF in families.items():
        for law in laws:
            weights_N = feature_optimum.solve(law, worth_N, features_NF, kl).weights_N
            measured = [exact_win_rate(other, weights_N, speaker_N, worth_N) for other in laws]
            wins.append([seen, law.name, *(f"{win:.3f}" for win in measured)])
            shown.append([seen, law.name, *shares(suits_NT, run_NT, live_NT, weights_N)])
    top = [optimal.optimal_transform(law, kl=kl).win_rate for law in laws]
    return [*wins, ["anything, without ties", "each", *(f"{win:.3f}" for win in top)]], shown


def entries(texts, suits):
    """Bool and int arrays `[N, T]` of responses: whether each entry suits; the run before it, RUNS - 1 at most; whether it
    repeats the one before within a run; whether there is an entry. `suits`: bool by entry, or one such row a response."""
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
    return suits_NT, np.minimum(run_NT, RUNS - 1), repeats_NT, live_NT


def shares(suits_NT, run_NT, live_NT, weights_N):
    """Texts: the chance that an entry suits, by the run before it, under weights of the responses."""
    counts = [
        [np.sum(weights_N[:, None] * (mask_NT & (run_NT == run))) for mask_NT in (suits_NT, live_NT)]
        for run in range(RUNS)
    ]
    return [f"{suiting / max(told, 1e-300):.3f}" if told > 0 else "–" for suiting, told in counts]


def of_policy(folder):
    """`suits_NT, run_NT, live_NT, weights_N` of DRAWS responses of a policy to each held-out prompt of its run.

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
    suits_NT, run_NT, _, live_NT = entries([text for texts in drawn for text in texts], suits_NE)
    return suits_NT, run_NT, live_NT, np.ones(len(suits_NT))


if __name__ == "__main__":
    main(sys.argv[1:])

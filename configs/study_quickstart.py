"""The comparison on both synthetic tasks: every method, five KLs, three seeds of the whole pipeline. See docs/evidence.md.

An hour on a GPU shared by several shards; many hours on two cores.
"""

from ml_collections import ConfigDict

from configs import base, ledger


def get_config():
    study = ConfigDict()
    study.tasks = ConfigDict({"tones": base.get_config(), "ledger": ledger.get_config()})
    study.methods = (
        "raw",
        "raw_group_std",
        "log_sigmoid",
        "ppo",
        "max_at_k(4)",
        "dpo",
        "ipo",
        "bonbon_best(4)",
        "bonbon_worst(4)",
        "raft",
        "bond",
        "identity",
        "log",
        "exponential(10)",
        "exponential(-5)",
        "optimal(best_of(4))",
        "optimal(worst_of(4))",
    )
    study.kls = (0.1, 0.25, 0.5, 1.0, 2.0)  # nats per sequence; every method is trained for each
    study.seeds = (0, 1, 2)  # of the whole pipeline
    study.procedures = (
        "standard",
        *(f"best_of({n})" for n in (2, 4, 8, 16, 32)),
        *(f"worst_of({n})" for n in (2, 4, 8, 16)),
    )
    study.learning_rates = (1e-3, 2e-3, 4e-3)  # tried for every method and task; one rate is no search
    study.tune_kl = 0.5  # KL of the search
    study.tune_seed = 100  # its seed, not one of the grid's; measured on training prompts
    return study

"""The same comparison on a second task, which nobody tuned, with the methods that the first one's claims are about."""

from ml_collections import ConfigDict

from configs import ledger, study_tones


def get_config():
    study = study_tones.get_config()
    study.tasks = ConfigDict({"ledger": ledger.get_config()})
    with study.tasks.ledger.unlocked():
        study.tasks.ledger.align.kl_rate = study_tones.get_config().tasks.tones.align.kl_rate
    study.methods = (
        "raw_group_std",
        "ppo",
        "identity",
        "exponential(10)",
        "optimal(best_of(4))",
        "optimal(worst_of(4))",
        "raw",
        "max_at_k(4)",
    )
    study.kls = (0.5,)
    return study

"""The same comparison on a second task, which nobody tuned, with the methods that the first one's claims are about."""

from ml_collections import ConfigDict

from configs import ledger, study_tones


def get_config():
    study = study_tones.get_config()
    study.tasks = ConfigDict({"ledger": study_tones.recipe(ledger.get_config())})
    with study.tasks.ledger.unlocked():
        study.tasks.ledger.prefix_scorer.enabled, study.tasks.ledger.prefix_scorer.learning_rate = True, 3e-3
    study.methods = ("raw_group_std", "identity", "optimal(best_of(4))", "optimal(worst_of(4))")
    study.kls = (0.5,)
    study.learning_rates = (5e-3,)  # no search
    return study

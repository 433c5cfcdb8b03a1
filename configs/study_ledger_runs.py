"""The ledger task with a reference that looks back: is it what the reference sees that decides whether a transform pays?"""

from ml_collections import ConfigDict

from configs import study_ledger


def get_config():
    study = study_ledger.get_config()
    ledger = study.tasks.ledger
    with ledger.unlocked():
        ledger.data.name = "synthetic_ledger_runs"
        ledger.data.demonstrations_per_prompt = 200
        ledger.sft.steps, ledger.sft.batch_size = 2000, 256  # so many until the network sees runs
        ledger.prefix_scorer.enabled = False
    study.tasks = ConfigDict({"ledger_runs": ledger})
    study.procedures = tuple(name for name in study.procedures if not name.startswith("blockwise"))
    return study

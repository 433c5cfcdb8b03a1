"""Real dialogues: the HH-RLHF harmlessness set with a learned reward and a judge trained on other pairs.

infalign study --config configs/study_hh.py --workdir runs/study_hh --config.tasks.hh.data.path=FOLDER
"""

from ml_collections import ConfigDict

from configs import hh_harmless_tiny


def get_config():
    study = ConfigDict()
    study.tasks = ConfigDict({"hh": hh_harmless_tiny.get_config()})
    study.methods = (
        "raw",
        "raw_group_std",
        "ppo",
        "dpo",
        "bonbon_worst(4)",
        "identity",
        "exponential(-5)",
        "optimal(worst_of(4))",
    )
    study.kls = (0.25, 0.5, 1.0, 2.0)
    study.seeds = (0, 1, 2)
    study.procedures = ("standard", "best_of(4)", "worst_of(2)", "worst_of(4)", "worst_of(8)")
    study.learning_rates = (1.5e-4,)
    study.tune_kl = 0.5
    study.tune_seed = 100
    return study

"""Real dialogues: the HH-RLHF harmlessness set with a learned reward and a judge trained on other pairs.

infalign study --config configs/study_hh.py --workdir runs/study_hh --config.tasks.hh.data.path=FOLDER
"""

from ml_collections import ConfigDict

from configs import hh_harmless_tiny, study_tones


def get_config():
    hh = study_tones.recipe(hh_harmless_tiny.get_config())
    with hh.unlocked():  # shorter texts and a smaller vocabulary than there: more training in the same time
        hh.data.train_prompts, hh.data.test_prompts = 128, 96
        hh.data.prompt_tokens, hh.data.response_tokens = 32, 20
        hh.tokenizer.vocab_size = 1024
        hh.model.num_layers = 2
        hh.sft.steps = 130  # three passes: ten learn the 1,800 demonstrations by heart
        hh.calibrate.rollouts = 64
        # Few parameters that learn slowly: the noise of the gradient spends KL on what trains.
        hh.lora.rank, hh.align.learning_rate = 4, 3e-4
        hh.align.steps, hh.align.save_every = 300, 100
        hh.align.kl_warmup, hh.align.kl_rate = 50, 0.03  # a policy that learns slowly answers slowly
        hh.align.prompts_per_step, hh.align.rollouts = 32, 16
        hh.evaluate.samples = 64
    study = ConfigDict()
    study.tasks = ConfigDict({"hh": hh})
    study.methods = ("raw_group_std", "optimal(worst_of(4))", "identity", "raw")
    study.kls = (0.5,)
    study.seeds = (0, 1, 2)
    study.procedures = ("standard", "best_of(4)", "worst_of(2)", "worst_of(4)", "worst_of(8)")
    study.learning_rates = (3e-4,)  # no search
    study.tune_kl = 0.5
    study.tune_seed = 100
    return study

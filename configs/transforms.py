"""Which transform: the certified optimum for best-of-8, the paper's exponential, and one policy for several N.

The quickstart's task with tables of 256 rollouts and three training seeds. Theory puts the optimum for best-of-8 above
exponential(10) at best-of-8, and the policy trained for the average over N above both in the mean over N = 1, 2, 4, 8;
the difference between identity and the best-of-8 specialist at N = 1 is the price of specialising. Intervals are over
prompts and seeds; theory for exact calibration and for tables of 256 stands beside each row (`theory` and
`theory_table` in results.json). What was measured is in docs/results.md.
"""

from configs import base

AVERAGE = "optimal(average_of(best_of(1),best_of(2),best_of(4),best_of(8)))"


def get_config():
    config = base.get_config()
    with config.unlocked():
        config.calibrate.rollouts = 256
        config.calibrate.prompts_per_call = 68
        config.align.methods = ("identity", "exponential(10)", "optimal(best_of(8))", AVERAGE)
        config.align.seeds = (0, 1, 2)
        config.align.steps = 200
        config.align.rollouts = 12
        # A transform as steep as the optimum for best-of-8 is learned late, and a quick controller would chase it.
        config.align.kl_rate = 0.04
        config.align.kl_warmup = 30
        config.evaluate.curve = (0.5,)
        config.evaluate.worst_of = ()
        config.evaluate.headline = "best_of(8)"
    return config

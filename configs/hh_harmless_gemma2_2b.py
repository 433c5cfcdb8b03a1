"""HH-RLHF harmlessness with Gemma 2 2B: adapters aligned for worst-of-4, what a user who asks four times may meet.

As `hh_helpful_gemma2_2b.py` but for the data and the procedure that policies are trained for.
"""

from configs import hh_helpful_gemma2_2b


def get_config():
    config = hh_helpful_gemma2_2b.get_config()
    with config.unlocked():
        config.data.subset = "harmless_base"
        config.align.methods = ("identity", "exponential(-5)")
        config.evaluate.headline = "worst_of(4)"
    return config

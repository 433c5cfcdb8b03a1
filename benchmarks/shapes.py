"""The model and the workloads that every side runs. Standard library only: the peers' environments import it too."""

import random
from typing import NamedTuple

MODEL = {"layers": 4, "embed": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "mlp": 1024, "vocab": 4096}
LEARNING_RATE, KL_WEIGHT = 1e-4, 0.1
PAD, EOS = 0, 1


class Shape(NamedTuple):
    """prompts of up to `slots` tokens each, `rollouts` completions of exactly `tokens` tokens a prompt, timed rounds.

    mixed: prompts are of unequal length, log-normal about a quarter of the slots, as dialogues are; else all are full.
    """

    prompts: int
    slots: int
    tokens: int
    rollouts: int
    rounds: int
    mixed: bool = False

    @property
    def sequences(self):
        return self.prompts * self.rollouts


SHAPES = {
    "rollout": {
        "64+64": Shape(32, 64, 64, 8, rounds=7),
        "512+64": Shape(32, 512, 64, 8, rounds=7),
        "128 a prompt": Shape(2, 64, 64, 128, rounds=7),
        "mixed 512+64": Shape(32, 512, 64, 8, rounds=7, mixed=True),
    },
    "update": {"64+64": Shape(8, 64, 64, 8, rounds=7), "512+64": Shape(8, 512, 64, 8, rounds=7)},
    "rl_step": {"64+64": Shape(8, 64, 64, 8, rounds=7), "512+64": Shape(8, 512, 64, 8, rounds=7)},
}


def prompts(shape):
    """Token lists, the same for every side; never the padding or the end of a sequence."""
    draw = random.Random(0)

    def length():
        return max(8, min(shape.slots, round(draw.lognormvariate(4.8, 0.7)))) if shape.mixed else shape.slots

    return [[draw.randrange(2, MODEL["vocab"]) for _ in range(length())] for _ in range(shape.prompts)]


def completions(shape):
    """One token list a sequence, rollouts of a prompt together: what the update is given."""
    draw = random.Random(1)
    return [[draw.randrange(2, MODEL["vocab"]) for _ in range(shape.tokens)] for _ in range(shape.sequences)]


def text(tokens):
    """A sequence as words, for sides that take strings."""
    return " ".join(map(str, tokens))


def reward(text):
    """Different words of a completion: cheap, and the same for every side."""
    return float(len(set(text.split())))

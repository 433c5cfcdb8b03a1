"""Names of methods: the calibrated transforms, and the baselines they are compared with.

A name that is not here is a transform (`transforms.from_name`, `optimal(...)`), trained by stage `align` itself.
"""

from typing import NamedTuple

from infalign_jax.core import naming


class Family(NamedTuple):
    """How the methods of a name are trained.

    module: the file with `open_trainer(inputs, method, seed)`; '' for stage `align` itself.
    least: smallest legal argument; None takes none.
    whole: the argument is a whole number.
    required: it must be given; else the method derives it from config.align.target_kl.
    ranks: rewards count by their order alone, so that cut responses may have the lowest.
    """

    module: str = ""
    least: float | None = None
    whole: bool = False
    required: bool = False
    ranks: bool = False


OFFLINE, _ON_POLICY = "infalign_jax.stages.offline", "infalign_jax.stages.on_policy"
FAMILIES = {
    "raw": Family(),
    "raw_group_std": Family(),
    "log_sigmoid": Family(),
    "ppo": Family("infalign_jax.stages.ppo"),
    "max_at_k": Family(_ON_POLICY, 1, whole=True, required=True),
    "bond": Family(_ON_POLICY, 1.1, ranks=True),
    "dpo": Family(OFFLINE, 0),
    "ipo": Family(OFFLINE, 0, ranks=True),
    "bonbon_best": Family(OFFLINE, 2, whole=True, required=True, ranks=True),
    "bonbon_worst": Family(OFFLINE, 2, whole=True, required=True, ranks=True),
    "raft": Family(OFFLINE, 1, ranks=True),
}


def head(method):
    """'dpo' of 'dpo(0.1)'; '' for a text that is no name."""
    return method.partition("(")[0].strip() if isinstance(method, str) else ""


def is_baseline(method):
    """Whether a method is one of FAMILIES rather than a calibrated transform."""
    return head(method) in FAMILIES


def by_rank(method):
    """Whether a method sees no more of rewards than their order: transforms do, and the baselines made of ranks."""
    return not is_baseline(method) or FAMILIES[head(method)].ranks


def module(method):
    """The file that trains a method, '' for stage `align` itself."""
    return FAMILIES[head(method)].module if is_baseline(method) else ""


def argument(method, default=None):
    """The number in a baseline's name, or `default` where there is none."""
    _, args = naming.parse(method, "method")
    return args[0] if args else default


def legal():
    """What may be written for each baseline, e.g. 'dpo or dpo(x)'."""
    words = []
    for name, family in FAMILIES.items():
        with_number = f"{name}({'n' if family.whole else 'x'})"
        words.append(name if family.least is None else with_number if family.required else f"{name} or {with_number}")
    return words


def check(method, rollouts, table):
    """Refuses a baseline's name that cannot be trained.

    Args:
      method: a name for which `is_baseline`.
      rollouts: R, of config.align.rollouts.
      table: K, reference rollouts per prompt.

    Raises:
      ValueError: not of the form, an argument missing, not expected or out of range.
    """
    name, args = naming.parse(method, "method")
    family = FAMILIES[name]
    if family.least is None and args:
        raise ValueError(f"method {method!r} takes no argument; write {name!r}")
    if len(args) > 1 or (family.required and not args):
        raise ValueError(f"method {method!r} takes one number; legal are {', '.join(legal())}")
    if not args:
        return
    (value,) = args
    number = isinstance(value, (int, float))
    if not number or (family.whole and value != int(value)) or not family.least <= value < 1e9 or value == 0:
        kind = "a whole number" if family.whole else "a number"
        bound = f"of at least {family.least:g}" if family.least else "above 0"
        raise ValueError(f"method {method!r} has the argument {value!r}; it must be {kind} {bound}")
    most, what = {"max_at_k": (rollouts, "config.align.rollouts")}.get(name, (table, "config.calibrate.rollouts"))
    if family.whole and value > most:
        raise ValueError(f"method {method!r} needs {what} to be at least {value}, and it is {most}")

"""Inference-time procedures and objectives: the public face of the files that define them, and their names.

``from_name`` reads ``best_of(4)``, ``randomized(0.5*best_of(8),0.5*worst_of(8))``, ``average_of(standard,best_of(4))``.
Source: InfAlign (arXiv 2412.19792), calibrated procedures.
"""

import dataclasses

from infalign_jax.core import naming
from infalign_jax.core.procedure import Procedure
from infalign_jax.core.rank_procedures import (
    best_of,
    best_of_poisson,
    checked_parts,
    from_distortion,
    from_samples,
    order_statistic,
    parts_name,
    randomized,
    standard,
    worst_of,
)
from infalign_jax.core.value_procedures import rewind_and_repeat, soft_best_of

__all__ = [
    "Objective",
    "Procedure",
    "average_of",
    "best_of",
    "best_of_poisson",
    "from_distortion",
    "from_name",
    "from_samples",
    "order_statistic",
    "randomized",
    "rewind_and_repeat",
    "soft_best_of",
    "standard",
    "worst_of",
]


@dataclasses.dataclass(frozen=True)
class Objective:
    """An average of win rates, ``sum_i w_i W_i``: for an N unknown at training time. It has no law and no selection."""

    name: str
    parts: tuple

    def __repr__(self):
        return f"<objective {self.name}>"


def average_of(parts):
    """The objective ``sum_i w_i W_i``; in each term both sides use the same procedure. Derivative: ``sum_i w_i Phi_i``.

    Not the same as ``randomized``, where each side draws its own procedure.

    Args:
      parts: ``[(w, procedure), ...]``, weights positive and summing to 1.

    Raises:
      ValueError: weights that are no probabilities.

    Examples:
      >>> average_of([(0.5, standard()), (0.5, best_of(4))]).name
      'average_of(standard,best_of(4))'
    """
    weights, procedures = checked_parts("average_of", parts)
    return Objective(
        parts_name("average_of", weights, procedures), tuple(zip(weights.tolist(), procedures, strict=True))
    )


CHOICES = {
    "standard": standard,
    "best_of": best_of,
    "worst_of": worst_of,
    "order_statistic": order_statistic,
    "best_of_poisson": best_of_poisson,
    "rewind_and_repeat": rewind_and_repeat,
    "soft_best_of": soft_best_of,
}
COMBINATIONS = {"randomized": randomized, "average_of": average_of}


def from_name(name):
    """The procedure or objective with this name; one that is made already is returned as it is.

    The arguments of ``randomized`` and ``average_of`` are procedures, all with weights (``0.3*best_of(4)``) or all
    without (then uniform).

    Raises:
      ValueError: anything else; the message lists what is legal.

    Examples:
      >>> from_name("best_of(4)").distortion(0.5)  # all four below the median
      0.0625
    """
    if hasattr(name, "parts"):
        return name
    return _build(*naming.parse(name, "procedure"), name)


def _build(head, args, text):
    if head not in COMBINATIONS:
        combined = [f"{name}(procedure, ...)" for name in COMBINATIONS]
        return naming.build_parsed(CHOICES, head, args, text, "procedure", combined)
    if not args or not all(isinstance(arg, tuple) for arg in args):
        raise ValueError(f"procedure {text!r}: {head} takes procedures, with weights (0.3*best_of(4)) or without")
    weighted = [isinstance(arg[0], (int, float)) for arg in args]
    if any(weighted) and not all(weighted):
        raise ValueError(f"procedure {text!r}: give every part of {head} a weight or none")
    pairs = args if all(weighted) else [(1 / len(args), arg) for arg in args]
    return COMBINATIONS[head]([(w, _build(*part, text)) for w, part in pairs])

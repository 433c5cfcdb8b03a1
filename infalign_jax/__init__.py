"""Inference-aware alignment of language models (InfAlign, arXiv 2412.19792) in JAX.

Tensor names end in their shape, one letter a dimension:

    P prompts of a dataset      B prompts of a batch          R rollouts per prompt      K reference rollouts per prompt
    T tokens of a sequence      S prompt slots (left padded)  C completion slots         V vocabulary
    D model width               N query heads                 G key/value heads          H head width
    F feed-forward width        L layers                      M grid points or samples

Importing this package loads nothing heavy: every name below is resolved at first use.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {name: f"infalign_jax.core.{name}" for name in ("procedures", "theory", "transforms")}
_FUNCTIONS = {
    "calibrate": "infalign_jax.core.calibration",
    "estimate_win_rate": "infalign_jax.core.winrate",
    "exact_win_rate": "infalign_jax.core.winrate",
    "optimal_transform": "infalign_jax.core.optimal",
    "frontier": "infalign_jax.core.frontier",
    "load_policy": "infalign_jax.policy",
}
__all__ = ["__version__", *sorted([*_MODULES, *_FUNCTIONS])]


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'infalign_jax' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return __all__

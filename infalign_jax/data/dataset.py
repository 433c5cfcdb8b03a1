"""What a data source hands to the stages, and the table of sources."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Each module has one function `load(*, path, seed, **its own explicit options) -> Dataset`.
SOURCES = {
    "synthetic": "infalign_jax.data.synthetic",
    "synthetic_ledger": "infalign_jax.data.synthetic_ledger",
    "synthetic_ledger_runs": "infalign_jax.data.synthetic_ledger_runs",
    "anthropic_hh": "infalign_jax.data.anthropic_hh",
    "tldr": "infalign_jax.data.tldr",
    "jsonl": "infalign_jax.data.jsonl",
}

Judge = Callable[[list[str], list[str]], np.ndarray]


class Demonstration(NamedTuple):
    """One response worth imitating; `prompt + response` is the text as a model would see it."""

    prompt: str
    response: str


class Preference(NamedTuple):
    """Two responses to one prompt, the annotator's choice first."""

    prompt: str
    chosen: str
    rejected: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt to align on, the group it is reported under ('' = no groups), and whatever else its row held.

    `messages` is the dialogue that a chat template made the text of, () where the text was given.
    """

    text: str
    group: str = ""
    columns: dict = dataclasses.field(default_factory=dict)
    messages: tuple = ()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Everything the stages read; a list that a source cannot fill is empty, and the stage that needs it says so.

    `judge_preferences` are other comparisons than `preferences`: a reward model of them is an independent judge.
    `judge` is a gold reward `f(prompts, completions) -> float32 [n]` where one exists, else None.
    """

    demonstrations: list[Demonstration] = dataclasses.field(default_factory=list)
    preferences: list[Preference] = dataclasses.field(default_factory=list)
    judge_preferences: list[Preference] = dataclasses.field(default_factory=list)
    held_out_preferences: list[Preference] = dataclasses.field(default_factory=list)
    train_prompts: list[Prompt] = dataclasses.field(default_factory=list)
    test_prompts: list[Prompt] = dataclasses.field(default_factory=list)
    judge: Judge | None = None

    def texts(self):
        """Every distinct training text, in a fixed order: what a tokeniser is trained on. Nothing held out is in it."""
        pieces = [prompt.text for prompt in self.train_prompts]
        for rows in (self.demonstrations, self.preferences, self.judge_preferences):
            pieces.extend(text for row in rows for text in row)
        return list(dict.fromkeys(pieces))


def load(name, *, path, seed, **options):
    """The dataset called `name`.

    Args:
      name: a key of `SOURCES`.
      path: file or folder the source reads; '' for the synthetic task, which has none.
      seed: the only source of randomness.
      **options: the source's own keyword arguments, each required (`options_of(name)` lists them).

    Returns:
      A `Dataset`, the same for the same arguments.

    Raises:
      ValueError: unknown source; missing or unknown option; unreadable or malformed data.
    """
    legal = options_of(name)
    unknown, missing = sorted(set(options) - set(legal)), sorted(set(legal) - set(options))
    if unknown or missing:
        what = f"does not take {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise ValueError(f"data source {name!r} {what}; its options are {', '.join(legal)}")
    return _module(name).load(path=path, seed=seed, **options)


def options_of(name):
    """The option names of a source, in the order of its signature. Raises ValueError for an unknown source."""
    parameters = inspect.signature(_module(name).load).parameters
    return [key for key in parameters if key not in ("path", "seed")]


def _module(name):
    if name not in SOURCES:
        raise ValueError(f"data source {name!r} is unknown; it is one of {', '.join(sorted(SOURCES))}")
    return importlib.import_module(SOURCES[name])


def require_count(name, value, minimum=0):
    """`value` if it is an integer >= minimum, else a ValueError naming the option."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {minimum}")
    return int(value)

"""Where the calibrated rewards of `infalign generate` come from: a stored table, reference responses, or a head."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from infalign_jax.core.calibration import calibrate
from infalign_jax.data.tokenize import encode_whole
from infalign_jax.generate.rewards import open_head
from infalign_jax.models import heads
from infalign_jax.stages.calibrate import read_table
from infalign_jax.training import workdir


class Calibrator(NamedTuple):
    """How a reward becomes u, prompt by prompt: its row of the table, else reference responses, else the head, else not.

    rows: {prompt: ascending reference rewards [K]} of a stored table.
    tails: of u by the table.
    truncated, penalty: how the run that made the table scores a response that was cut; so are all here.
    reference: `Policy`, or None.
    rollouts: its responses to a prompt.
    head: `prompts -> rows [B, M]`, or None.
    """

    rows: dict
    tails: str
    truncated: str
    penalty: float
    reference: Any
    rollouts: int
    head: Callable | None


def open_calibrator(folder, reward, prompts, *, reference=None, rollouts=64):
    """The `Calibrator` of `--table FOLDER` and `--reference`; says once what it cannot calibrate.

    Args:
      folder: `<workdir>/calibrate`, or '' for none.
      reward: what `--reward` says: a table of another reward calibrates something else, which is said.
      prompts: all that will come.
      reference, rollouts: as in `Calibrator`.

    Raises:
      ValueError: no table in the folder, or a damaged one.
    """
    if not folder:
        return Calibrator({}, "flat", "as_is", 0.0, reference, rollouts, None)
    folder = epath.Path(folder)
    table, texts = read_table(folder)
    _check_reward(table.provenance["reward"], reward, folder)
    head = open_quantiles(folder.parent / "amortize")
    rows = dict(zip(texts, table.rewards_PK, strict=True))
    if reference is None and head is None and (missing := [prompt for prompt in prompts if prompt not in rows]):
        logging.warning(
            "%d of %d prompts are not in the table of %s: their calibrated rewards are null, for want of --reference",
            len(missing), len(prompts), folder,
        )  # fmt: skip
    sampling = table.provenance["sampling"]
    tails = workdir.read_json(folder.parent / "config.json")["calibrate"]["tails"]
    return Calibrator(rows, tails, sampling["truncated"], sampling["penalty"], reference, rollouts, head)


def _check_reward(made_with, reward, folder):
    own = folder.parent / "reward_model"
    if made_with == reward or (
        made_with == "learned" and own.is_dir() and own.resolve() == epath.Path(reward).resolve()
    ):
        return
    logging.warning(
        "the table of %s was made with the reward %r, and --reward is %r: u is right only if they are the same function",
        folder, made_with, reward,
    )  # fmt: skip


def open_quantiles(folder):
    """The head that stage `amortize` left, as `prompts -> rows [B, M]`; None if the workdir has no finished one."""
    if not (folder / "done.json").exists():
        return None
    levels = workdir.read_json(folder.parent / "config.json")["amortize"]["levels"]
    start = np.zeros(levels, np.float32)
    add_head = lambda config, trunk: heads.add_quantile_head(config, trunk, start, 1.0)  # noqa: E731
    config, variables, tokenizer = open_head(folder, "--table", add_head)
    apply = jax.jit(functools.partial(heads.quantiles, config))

    def rows(prompts):
        encoded = encode_whole(tokenizer, prompts)
        return np.asarray(apply(variables, encoded.tokens_NS, encoded.lengths_N))

    return rows


def calibrated(calibrator, rewards_Bn, prompts, draw):
    """(u [B, n], source [B]): floats and 'table', 'reference' or 'head', or None and None where nothing calibrates.

    Args:
      calibrator: `Calibrator`.
      rewards_Bn: of the responses.
      prompts: B texts.
      draw: `() -> rewards [B, K]` of reference responses; called only if some prompt needs them.
    """
    known = [prompt in calibrator.rows for prompt in prompts]
    others = None
    if not all(known) and calibrator.reference is not None:
        others = "reference", draw(), "flat"
    elif not all(known) and calibrator.head is not None:
        others = "head", calibrator.head(prompts), "exponential"  # the row of a head is made for these tails
    u_Bn, sources = np.full(rewards_Bn.shape, None), [None] * len(prompts)
    for b, prompt in enumerate(prompts):
        if known[b]:
            sources[b], row, tails = "table", calibrator.rows[prompt], calibrator.tails
        elif others:
            sources[b], row, tails = others[0], others[1][b], others[2]
        else:
            continue
        u_Bn[b] = np.asarray(calibrate(rewards_Bn[b], row, tails=tails), np.float64)
    return u_Bn, sources

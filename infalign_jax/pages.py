"""Help pages of `infalign run` and of every stage: what it reads and leaves, and its keys as `configs/base.py` tells them."""

import ast
import re
import textwrap
from typing import NamedTuple

from infalign_jax import recipe

WIDTH, LEFT = 120, 56  # letters of a line, and of a key with its default that still has its comment beside it
_KEY = re.compile(r"^    config\.([\w.]+) = (.+?)(?:  # (.*))?$")


class Page(NamedTuple):
    """What stands on a page.

    title: what the command does, on one line.
    text: paragraphs about what it needs, does and leaves.
    sections: of the config whose keys are listed; '' are the keys that are in no section.
    """

    title: str
    text: tuple
    sections: tuple


PAGES = {
    "run": Page(
        "every stage, in order; what is done is skipped, what was interrupted goes on where it stopped",
        (
            "sft, reward-model, calibrate, amortize, prefix-scorer, align and evaluate; those that the config does not ask for "
            "have nothing to do. A run begins by saying what is wrong with the config, ends by saying where everything is, and "
            "is stopped by Ctrl-C at any time. `infalign status DIR`, from anywhere, says how far it is. A workdir belongs to one "
            "config: keys of evaluate, judge, mesh and log may change later, the rest needs another workdir.",
            "Each stage has keys of its own: infalign sft --help, infalign align --help, and so on. These concern all:",
        ),
        ("", "data", "tokenizer", "model", "mesh", "sampling", "log"),
    ),
    "sft": Page(
        "the reference policy, by next-token training on demonstrations",
        (
            "Trains a fresh model, or the one in config.model.path, to give the data's demonstrations, and a tokeniser where none "
            "is given. With config.sft.steps=0 and a config.model.path that model is the reference policy as it is.",
            "Leaves DIR/sft with variables/ (for infalign_jax.load_policy and generate), metrics.jsonl, and for a Hugging Face "
            "model hf/; and DIR/tokenizer.",
        ),
        ("sft",),
    ),
    "reward-model": Page(
        "a reward model, and a judge, from preference pairs",
        (
            "Bradley-Terry models on the reference policy's trunk: the reward if config.reward is 'learned', and on pairs of its own "
            "(config.data.judge_fraction) the judge if config.judge is; nothing otherwise. Needs stage sft.",
            "Leaves DIR/reward_model and DIR/judge with variables/, metrics.jsonl, and in done.json accuracy and calibration error "
            "on held-out pairs.",
        ),
        ("reward_model",),
    ),
    "calibrate": Page(
        "rollouts of the reference policy, scored: the table that calibrates rewards",
        (
            "Draws K responses to each training prompt, scores them, and tests on further rollouts that calibrated rewards of the "
            "reference come out uniform. Needs stage sft, and reward-model for a learned reward. A table is refused by later stages "
            "if reward, sampling, data or reference policy are not those it was made with.",
            "Leaves DIR/calibrate with table.npz (rewards [P, K] ascending, held_out, truncated), prompts.json and provenance.json.",
        ),
        ("calibrate",),
    ),
    "amortize": Page(
        "a head that predicts each prompt's quantiles of the reference reward from the prompt",
        (
            "For prompts without rollouts. `infalign run` includes it if config.amortize.enabled; config.calibrate.source=amortized "
            "trains on it. Needs stage calibrate.",
            "Leaves DIR/amortize with variables/, and in done.json its error beside that of tables of several sizes.",
        ),
        ("amortize",),
    ),
    "prefix-scorer": Page(
        "a head that says how an unfinished response ends",
        (
            'What `infalign generate --procedure "blockwise(K, M)"` chooses blocks by. `infalign run` includes it if '
            "config.prefix_scorer.enabled. Needs stage calibrate.",
            "Leaves DIR/prefix_scorer with variables/ and metrics.jsonl, and in done.json its error for prefixes of several lengths.",
        ),
        ("prefix_scorer",),
    ),
    "align": Page(
        "one policy per method of config.align.methods and seed, each with its reward transform",
        (
            "Draws responses of the policy, calibrates and transforms their rewards, and follows the policy gradient; the KL "
            "coefficient starts where theory says and is steered to config.align.target_kl. Every show_every steps a table of sampled "
            "responses with reward, calibrated reward u and advantage is printed and kept. Needs stage calibrate. Methods:",
            "  identity, log, exponential(t), optimal(PROCEDURE)              calibrated, and transformed for a procedure\n"
            "  raw, raw_group_std, log_sigmoid, max_at_k(k), ppo, bond(n)    on policy, without it\n"
            "  dpo, ipo, raft(n), bonbon_best(n), bonbon_worst(n)            from the table's rollouts",
            "Leaves DIR/align/METHOD/seed_N with variables/, metrics.jsonl, samples.jsonl, checkpoints/, and for a Hugging Face model "
            "hf/ and adapter/.",
        ),
        ("align", "lora", "baselines"),
    ),
    "evaluate": Page(
        "win rates of all methods at equal KL, with tables, figures and report.html",
        (
            "Brings every policy to the target KL by interpolating its parameters with the reference's, draws responses to held-out "
            "prompts, and estimates how often best-of-N, worst-of-N and single responses beat those of the reference: unbiased, with "
            "95 % intervals over prompts, by the training reward and by the judge. Needs stage align for all methods.",
            "Leaves DIR/evaluate with report.html, figures/, and every number in *.json. May be run again with other config.evaluate.",
        ),
        ("evaluate",),
    ),
}


def page(command):
    """The help page of `run` or a stage as text."""
    title, text, sections = PAGES[command]
    flags = "--config RECIPE --workdir DIR [--config.section.key=value ...]"
    paragraphs = [part if part.startswith("  ") else textwrap.fill(part, WIDTH, initial_indent="  ", subsequent_indent="  ")
                  for part in text]  # fmt: skip
    listed = ["\n".join(lines) for section in sections if (lines := list(_lines(section)))]
    head = f"infalign {command} {flags}\n\n  {title[0].upper()}{title[1:]}."
    return "\n\n".join([head, *paragraphs, "keys, with the defaults of the recipe base", *listed]) + "\n"


def defaults():
    """{dotted key: (default as written, comment)} of `configs/base.py`, in its order."""
    lines = (recipe.shipped() / "base.py").read_text().splitlines()
    found = [match.groups(default="") for line in lines if (match := _KEY.match(line))]
    return {key: (value, comment) for key, value, comment in found if value != "ConfigDict()"}


def _lines(section):
    """The keys of a section, each with its comment in a column of its own."""
    rows = [
        (f"  --config.{key}={_typed(value)}", told) for key, (value, told) in defaults().items()
        if key.rpartition(".")[0] == section
    ]  # fmt: skip
    space = " " * (max(len(left) for left, _ in rows if len(left) <= LEFT) + 3)
    for left, told in rows:
        if len(left) > LEFT:
            yield left
            left = ""
        yield (
            textwrap.fill(told, WIDTH, initial_indent=left.ljust(len(space)), subsequent_indent=space) if told else left
        )


def _typed(value):
    """A default as it is typed in a shell: strings without quotes, tuples as words between commas."""
    value = ast.literal_eval(value)
    words = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f'"{words}"' if "(" in words else words

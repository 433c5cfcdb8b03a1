"""The `jsonl` source: the user's own rows, in any of the shapes preference data comes in.

Keys of a row                    becomes
`prompt`                         a prompt
`prompt, completion`             a demonstration and a prompt
`prompt, chosen, rejected`       a preference, its chosen response a demonstration, and a prompt
`chosen, rejected`               the same, the prompt being what the two have in common at their start

Values are strings or lists of `{role, content}`; all other keys are kept in `Prompt.columns`.
"""

import pathlib
from typing import NamedTuple

from infalign_jax.data import chat
from infalign_jax.data.chat import ASSISTANT
from infalign_jax.data.dataset import Dataset, Demonstration, Preference, Prompt, require_count
from infalign_jax.data.rows import read_rows
from infalign_jax.data.split import keep_some, require_fraction, split_by_prompt, without_seen

RESPONSE_KEYS = ("completion", "chosen", "rejected")


class Row(NamedTuple):
    """A parsed row; the responses it does not have are None. `messages` is the prompt as a dialogue, () if a text."""

    prompt: str
    completion: str | None
    chosen: str | None
    rejected: str | None
    columns: dict
    messages: tuple = ()


def load(*, path, seed, train_prompts, test_prompts, test_fraction, judge_fraction, group_column, chat_template):
    """Rows of a user's JSONL as a `Dataset` without a judge.

    Args:
      path: a file (`.jsonl`, also gzipped), or a folder with `train.jsonl[.gz]` and perhaps `test.jsonl[.gz]`.
      seed: fixes which prompts are held out and which go to the judge's share.
      train_prompts, test_prompts: how many prompts to keep for aligning and evaluating, 0 for all; pairs are all kept.
      test_fraction: share of the distinct prompts held out when there is no test file, in [0, 1).
      judge_fraction: share of the training prompts whose pairs are set aside for an independent judge, in [0, 1].
      group_column: key whose value names the group of a prompt, '' for no groups.
      chat_template: for message lists: '' writes plain turns, else the path of a Jinja chat template.

    Raises:
      ValueError: one sentence naming path:line where a row is broken, or the option that is not legal.
    """
    test_fraction = require_fraction("test_fraction", test_fraction)
    judge_fraction = require_fraction("judge_fraction", judge_fraction)
    if test_fraction == 1:
        raise ValueError("test_fraction is 1; it must leave prompts to train on")
    limits = require_count("train_prompts", train_prompts), require_count("test_prompts", test_prompts)
    render = chat.renderer(chat_template)
    train_file, test_file = _files(pathlib.Path(path))
    train = _read(train_file, render)
    if test_file is None:
        train, test = split_by_prompt(train, test_fraction, seed, purpose=0)
    else:
        test = without_seen(_read(test_file, render), train)
    preferences, judge_preferences = split_by_prompt(_preferences(train), judge_fraction, seed, purpose=1)
    return Dataset(
        demonstrations=_demonstrations(train),
        preferences=preferences,
        judge_preferences=judge_preferences,
        held_out_preferences=_preferences(test),
        train_prompts=keep_some(_prompts(train, group_column, train_file), limits[0], seed),
        test_prompts=keep_some(_prompts(test, group_column, test_file or train_file), limits[1], seed),
    )


def parse_row(row, where, render):
    """One JSON object as a `Row`; `where` begins every message, `render` (a `chat.Renderer`) writes message lists as
    text.

    Raises ValueError: missing keys, a value of another type, messages without role or content, an empty prompt or
    response, `chosen` and `rejected` with nothing in common.
    """
    responses = {key: row[key] for key in RESPONSE_KEYS if key in row}
    if ("chosen" in row) != ("rejected" in row):
        given, other = ("chosen", "rejected") if "chosen" in row else ("rejected", "chosen")
        raise ValueError(f"{where}: the row has {given!r} but no {other!r}")
    if "prompt" not in row and "chosen" not in row:
        keys = ", ".join(map(repr, row)) or "none"
        raise ValueError(f"{where}: the row needs 'prompt', or 'chosen' and 'rejected'; its keys are {keys}")
    for key in ("prompt", *responses):
        if key in row:
            _check_value(row[key], key, where)
    if "chosen" in row and isinstance(row["chosen"], list) != isinstance(row["rejected"], list):
        raise ValueError(f"{where}: 'chosen' and 'rejected' must both be strings or both be message lists")
    columns = {key: value for key, value in row.items() if key not in ("prompt", *RESPONSE_KEYS)}
    if "chosen" in row and ("prompt" not in row or _is_dialogue(row["chosen"])):
        prompt, responses["chosen"], responses["rejected"] = _common_prompt(row["chosen"], row["rejected"], where)
    else:
        prompt = row["prompt"]
    try:
        prompt_text = render.prompt(prompt) if isinstance(prompt, list) else prompt
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not prompt_text.strip():
        raise ValueError(f"{where}: the prompt is empty")
    after_messages = isinstance(prompt, list)
    texts = {key: _response_text(value, key, after_messages, where, render) for key, value in responses.items()}
    return Row(
        prompt_text, *(texts.get(key) for key in RESPONSE_KEYS), columns, tuple(prompt) if after_messages else ()
    )


def _check_value(value, key, where):
    if isinstance(value, list):
        for message in value:
            parts = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
            if not all(isinstance(part, str) for part in parts):
                raise ValueError(f"{where}: {key!r} holds a message without a string 'role' and a string 'content'")
        if not value:
            raise ValueError(f"{where}: {key!r} is an empty list of messages")
    elif not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} has type {type(value).__name__}; it must be a string or a list of messages")


def _is_dialogue(value):
    """Whether a response value is a whole dialogue, prompt included, rather than the answer alone."""
    return isinstance(value, list) and any(message["role"] != "assistant" for message in value)


def _common_prompt(chosen, rejected, where):
    """(prompt, chosen, rejected) of two whole texts or dialogues, split where they begin to differ.

    Texts with assistant turns are cut at the last of them. Other texts are cut at the last space or newline they
    share, so that no word is torn.
    """
    if isinstance(chosen, list):
        if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
            raise ValueError(f"{where}: 'chosen' and 'rejected' must be the same messages up to the last")
        return chosen[:-1], chosen[-1:], rejected[-1:]
    if ASSISTANT in chosen and ASSISTANT in rejected:
        cut = chosen.rfind(ASSISTANT) + len(ASSISTANT)
        shared = chosen[:cut] == rejected[: rejected.rfind(ASSISTANT) + len(ASSISTANT)]
    else:
        same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
        cut = max(chosen.rfind(" ", 0, same), chosen.rfind("\n", 0, same))
        shared = cut > 0
    if not shared:
        raise ValueError(f"{where}: 'chosen' and 'rejected' do not begin with the same prompt")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _response_text(value, key, to_messages, where, render):
    """The text of a response: a string as it is, a message as the renderer writes it after the prompt."""
    if isinstance(value, list):
        if len(value) != 1 or value[0]["role"] != "assistant":
            raise ValueError(f"{where}: {key!r} must be one message of the assistant after the prompt")
        value = value[0]["content"]
    if not value.strip():
        raise ValueError(f"{where}: the response {key!r} is empty")
    return render.response(value) if to_messages else value


def _files(path):
    if path.is_dir():
        found = {}
        for split in ("train", "test"):
            found[split] = next((f for end in ("", ".gz") if (f := path / f"{split}.jsonl{end}").is_file()), None)
        if found["train"] is None:
            raise ValueError(f"data folder {str(path)!r} holds no train.jsonl or train.jsonl.gz")
        return found["train"], found["test"]
    return path, None


def _read(file, render):
    return [parse_row(row, where, render) for where, row in read_rows(file)]


def _demonstrations(rows):
    pairs = [(row.prompt, response) for row in rows for response in (row.completion, row.chosen)]
    return [Demonstration(*pair) for pair in pairs if pair[1] is not None]


def _preferences(rows):
    return [Preference(row.prompt, row.chosen, row.rejected) for row in rows if row.chosen is not None]


def _prompts(rows, group_column, file):
    """Distinct prompts, each with the columns of its first row."""
    prompts = {}
    for row in rows:
        if group_column and group_column not in row.columns:
            raise ValueError(f"{file}: a row has no {group_column!r}, the key that group_column names")
        group = str(row.columns[group_column]) if group_column else ""
        prompts.setdefault(row.prompt, Prompt(row.prompt, group, row.columns, row.messages))
    return list(prompts.values())

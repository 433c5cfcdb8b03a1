"""Message lists (`[{role, content}, ...]`) to text: plain turns, or a model's own Jinja chat template.

Templates are code from a stranger's folder: they run in Jinja's immutable sandbox.
"""

import datetime
import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from infalign_jax.json_object import read_object

PLAIN_ROLES = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": "\n\nSystem: "}
ASSISTANT = PLAIN_ROLES["assistant"].rstrip(" ")  # where a prompt of plain turns ends
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Renderer(NamedTuple):
    """`prompt(messages) -> str` up to where the assistant speaks; `response(content) -> str` as it follows that
    prompt.
    """

    prompt: Callable
    response: Callable


class ChatTemplate(NamedTuple):
    """A template's source and the special tokens (`bos_token`, ...) that it may name."""

    source: str
    special_tokens: dict


def renderer(path):
    """A `Renderer`: plain turns (`Human:` / `Assistant:`, as in HH-RLHF) for '', else the template that
    `load_template` finds.
    """
    if not path:
        return Renderer(plain_prompt, lambda content: f" {content}")
    template = load_template(path)
    return Renderer(lambda messages: apply_chat_template(template, messages), lambda content: content)


def plain_prompt(messages):
    """Each message after its speaker's mark, then the assistant's mark without its space. ValueError for an unknown
    role.
    """
    for message in messages:
        if message["role"] not in PLAIN_ROLES:
            raise ValueError(f"message role is {message['role']!r}; plain turns know {', '.join(PLAIN_ROLES)}")
    turns = [PLAIN_ROLES[message["role"]] + message["content"] for message in messages]
    return "".join(turns) + ASSISTANT


def messages_of(prompt):
    """The messages that `plain_prompt` writes as this prompt; a text that is no such dialogue is one user's message."""
    marks = {mark.strip(): role for role, mark in PLAIN_ROLES.items()}
    head, *parts = re.split(rf"\n\n({'|'.join(marks)})", prompt)
    roles, contents = [marks[mark] for mark in parts[::2]], parts[1::2]
    if head or len(roles) < 2 or roles[-1] != "assistant" or contents[-1].strip():
        return [{"role": "user", "content": prompt}]
    turns = zip(roles[:-1], contents[:-1], strict=True)
    return [{"role": role, "content": content.removeprefix(" ")} for role, content in turns]


def answer(completion):
    """A completion as the assistant's message, without the space that follows the mark of a plain turn."""
    return {"role": "assistant", "content": completion.removeprefix(" ")}


def load_template(path):
    """The chat template of a `.jinja` file, a `tokenizer_config.json`, or a folder that holds either.

    Raises ValueError: no such file, no template in it, or a template that does not compile.
    """
    if not pathlib.Path(path).exists():
        raise ValueError(f"chat template path {str(path)!r} does not exist")
    template = find_template(path)
    if template is None:
        raise ValueError(f"chat template path {str(path)!r} holds no chat template")
    return template


def find_template(path):
    """As `load_template`, but None where the file or folder holds no template."""
    path = pathlib.Path(path)
    folder = path if path.is_dir() else path.parent
    config_file = folder / "tokenizer_config.json"
    config = read_object(config_file) if config_file.is_file() else {}
    if path.is_file() and path.suffix != ".json":
        source = _read(path)
    elif (folder / "chat_template.jinja").is_file():
        source = _read(folder / "chat_template.jinja")
    else:
        source = config.get("chat_template")
    if isinstance(source, list):  # several named templates; the one for plain conversation is called default
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if not source:
        return None
    if not isinstance(source, str):
        raise ValueError(f"{config_file} has chat_template = {source!r}; it must be a string or a list of named ones")
    try:
        _compile(source)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    tokens = {name: config[name] for name in SPECIAL_TOKENS if config.get(name)}
    tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    return ChatTemplate(source, tokens)


def _read(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"chat template {str(path)!r} is not UTF-8 text") from error


def apply_chat_template(template, messages, *, add_generation_prompt=True, now=None, **variables):
    """The text a model's template makes of the messages, as `transformers` would.

    Args:
      template: a `ChatTemplate`.
      messages: list of `{role, content}`.
      add_generation_prompt: end where the assistant is to speak.
      now: `datetime` that `strftime_now` reads, None for the clock.
      **variables: anything else the template asks for (`tools`, `documents`, `enable_thinking`, ...).

    Raises:
      ValueError: the template refuses the messages (its own `raise_exception`) or fails on them.
    """
    compiled = _compile(template.source, now)
    values = {"tools": None, "documents": None, **template.special_tokens, **variables}
    try:
        return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **values)
    except Exception as error:  # a stranger's code: it may raise anything
        what = str(error) or type(error).__name__
        raise ValueError(f"the chat template cannot write these messages: {what}") from error


@functools.lru_cache(maxsize=8)  # compiling takes milliseconds, writing one dialogue microseconds
def _compile(source, now=None):
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ValueError("chat templates need jinja2; install infalign-jax[hf]") from error

    class Generation(Extension):
        """`{% generation %} ... {% endgeneration %}` marks what the assistant said; here it only passes its text on."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message):
        raise jinja2.TemplateError(message)

    extensions = [Generation, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: (now or datetime.datetime.now()).strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template does not compile: line {error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise ValueError("the chat template does not compile: it is nested too deeply") from error


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Jinja's own filter escapes HTML, which no model's prompt wants."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

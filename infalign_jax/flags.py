"""Flags of the commands that take no recipe, read from a table: one reader, so that all refuse in the same words."""


def parse(command, words, table):
    """{flag: value} of a command's words.

    Args:
      command: as it is typed, for the errors.
      words: `--flag=value`, `--flag value` or, for a flag whose reader is `bool`, `--flag` alone; in any order.
      table: flag -> (default, reader of its text). A default of None makes the flag required.

    Raises:
      ValueError: naming the flag that is unknown, given twice, missing, without a value or not of its type.
    """
    given, rest = {}, list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in table:
            legal = ", ".join(f"--{flag}" for flag in table)
            raise ValueError(f"{command} has no flag {word!r}; legal are {legal}")
        if name in given:
            raise ValueError(f"--{name} is given twice; give it once")
        given[name] = _read(name, table[name][1], value if equals else None, rest)
    for name, (default, _) in table.items():
        if given.setdefault(name, default) is None:
            raise ValueError(f"--{name} is missing; see {command} --help")
    return given


def _read(name, reader, value, rest):
    if reader is bool:
        if value is not None:
            raise ValueError(f"--{name} takes no value, and was given {value!r}")
        return True
    if value is None:
        if not rest or rest[0].startswith("--"):
            raise ValueError(f"--{name} has no value; write --{name}=VALUE")
        value = rest.pop(0)
    try:
        return reader(value)
    except ValueError:
        kind = {int: "a whole number", float: "a number"}.get(reader, "something else")
        raise ValueError(f"--{name} is {value!r}; it must be {kind}") from None

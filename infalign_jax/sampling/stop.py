"""Stop strings: where a response ends because of what it says, however the tokeniser splits it."""


def check(stop) -> tuple:
    """The stop strings as a tuple, of one string or of several. Raises ValueError for any that is not a text."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(f"stop is {stop!r}; it must be a string or several, none of them empty")
    return strings


def stopper(decode, strings):
    """What `retire.sample` calls `stop`: a rollout keeps the fewest tokens whose text, `decode(ids)`, holds a stop string.

    So its last token is the one that completes the string, which may begin or end inside a token.
    """

    def found(tokens):
        text = decode(tokens)
        return any(string in text for string in strings)

    def stop(tokens, looked):
        if looked == len(tokens) or not found(tokens):
            return None
        return next(n for n in range(looked + 1, len(tokens) + 1) if found(tokens[:n]))

    return stop if strings else None


def cut(text, strings):
    """The text before the first stop string in it; all of it where there is none."""
    return text[: min((at for string in strings if (at := text.find(string)) >= 0), default=len(text))]

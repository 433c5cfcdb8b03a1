"""Text that models and data wrote, made safe to show: what would steer a terminal or turn the writing becomes visible."""

_CONTROL = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421}
_CONTROL |= {code: f"⟨U+{code:04X}⟩" for code in range(0x80, 0xA0)}
# Marks that turn the direction of all that follows: shown by number.
_TURNS = {code: f"⟨U+{code:04X}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def visible(value, keep=""):
    """A value as text of printable letters: control and direction marks by their pictures or numbers, lone surrogates
    replaced.

    Args:
      value: anything.
      keep: control characters that stay, such as newlines.

    Examples:
      >>> visible("a\\x1b[31m b")
      'a␛[31m b'
    """
    clean = str(value).encode("utf-8", "replace").decode()
    return clean.translate({code: mark for code, mark in (_CONTROL | _TURNS).items() if chr(code) not in keep})

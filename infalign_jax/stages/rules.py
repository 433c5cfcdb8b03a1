"""Rules for one value of a config: each a pair (is it legal?, the words for what is legal)."""

import math

LARGEST = 2**31 - 1  # what an int32 holds: steps, sizes and seeds live in such


def whole(low, high=LARGEST):
    """Integers of at least `low` and at most `high`, by default all that fit an int32."""
    return (lambda v: _is_whole(v) and low <= v <= high), f"an integer of at least {low} and at most {high}"


def real(low, high=math.inf, *, open_low=False):
    """Finite numbers between `low` and `high`; without `low` itself if `open_low`."""

    def legal(v):
        number = (_is_whole(v) or isinstance(v, float)) and math.isfinite(v)
        return number and v <= high and (v > low if open_low else v >= low)

    upper = "" if high == math.inf else f" and at most {high:g}"
    return legal, f"a finite number {'above' if open_low else 'of at least'} {low:g}{upper}"


def one_of(*names):
    """One of some words."""
    return (lambda v: isinstance(v, str) and v in names), "one of " + ", ".join(map(repr, names))


def tuple_of(rule, least=0):
    """A sequence of at least `least` entries that all obey a rule, each given once."""
    legal, words = rule

    def legal_all(v):
        sequence = isinstance(v, (tuple, list)) and len(v) >= least and all(map(legal, v))
        return sequence and len(set(v)) == len(v)

    return legal_all, f"a tuple of {'one or more ' if least else ''}different values, each {words}"


def text(least=0):
    """A string of at least `least` letters, none of them NUL, which no file name and no model can hold."""
    words = "a string with something in it" if least else "a string"
    return (lambda v: isinstance(v, str) and len(v.strip()) >= least and "\0" not in v), words


def flag():
    """True or False."""
    return (lambda v: isinstance(v, bool)), "True or False"


def devices():
    """Devices along an axis of the mesh."""
    return (lambda v: _is_whole(v) and (1 <= v <= LARGEST or v == -1)), "-1 or an integer of at least 1"


def steps():
    """The first and the last of some steps, or none."""

    def legal(v):
        pair = isinstance(v, (tuple, list)) and len(v) in (0, 2) and all(_is_whole(n) and 0 <= n <= LARGEST for n in v)
        return pair and (not v or v[0] <= v[1])

    return legal, "() or (FIRST, LAST) with 0 <= FIRST <= LAST"


def _is_whole(v):
    return isinstance(v, int) and not isinstance(v, bool)

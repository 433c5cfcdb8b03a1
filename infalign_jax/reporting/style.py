"""How methods look: one colour, marker and place per method, the same in every figure, table and theme.

Colours are chosen so that every pair stays apart under the common colour-vision deficiencies, in the light and in the
dark, and every method has its own marker besides.
"""

from typing import NamedTuple

INK, MUTED, GRID, PAPER = "#1f2328", "#656d76", "#d8dee4", "#ffffff"
KL_LABEL = "KL from the reference (nats per sequence)"
THEME = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"}


class Look(NamedTuple):
    """A method's colour on a light page, its colour on a dark page, and its marker."""

    color: str
    dark: str
    marker: str


LOOKS = {
    "raw": Look("#62676e", "#868d97", "X"),
    "raw_group_std": Look("#cc79a7", "#f3a9d2", "P"),
    "identity": Look("#0072b2", "#4299e1", "s"),
    "log": Look("#009e73", "#2fbf94", "^"),
    "exponential+": Look("#d55e00", "#f5813c", "o"),
    "exponential-": Look("#e69f00", "#f2bd3f", "v"),
    "optimal": Look("#56b4e9", "#a5dcff", "D"),
    "other1": Look("#882255", "#c2578f", "p"),
    "other2": Look("#4b3fa7", "#8f86e8", "h"),
}
MORE_MARKERS = ("<", ">", "*", "d", "H", "8")


def family(method):
    """The entry of LOOKS that a method asks for: 'exponential(-5)' -> 'exponential-', 'optimal(...)' -> 'optimal'."""
    name, _, argument = method.partition("(")
    if name == "exponential":
        return "exponential-" if argument.lstrip().startswith("-") else "exponential+"
    return name


def label(name):
    """A name as a figure can show it: one line, no control characters, at most 28 characters."""
    clean = "".join(letter if letter.isprintable() else "�" for letter in str(name))
    return clean if len(clean) <= 28 else clean[:27] + "…"


def capitalized(text):
    """The text with a capital at its start, the rest as it is."""
    return text[:1].upper() + text[1:]


def order(methods):
    """Distinct methods in reading order: baselines first, then calibrated transforms, then whatever else there is."""
    places = {name: place for place, name in enumerate(LOOKS)}
    return sorted(dict.fromkeys(methods), key=lambda method: (places.get(family(method), len(places)), method))


def looks(methods):
    """{method: Look}: each method its own family's look, or the next free one when two methods share a family.

    Beyond as many methods as there are looks, colours are used again, with markers of their own.
    """
    methods, taken = order(methods), {}
    for method in methods:
        if family(method) in LOOKS and family(method) not in taken.values():
            taken[method] = family(method)
    left = [method for method in methods if method not in taken]
    free = [name for name in reversed(LOOKS) if name not in taken.values()]
    taken |= dict(zip(left, free, strict=False))
    found = {method: LOOKS[name] for method, name in taken.items()}
    for index, method in enumerate(left[len(free) :]):
        again = list(LOOKS.values())[index % len(LOOKS)]
        found[method] = again._replace(marker=MORE_MARKERS[index % len(MORE_MARKERS)])
    return {method: found[method] for method in methods}


RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same picture on every machine
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # names come from users and may hold dollar signs
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "savefig.dpi": 170,
    "svg.fonttype": "path",  # glyphs travel inside the file
    "svg.hashsalt": "infalign",
}

"""A picture: panels that can be drawn side by side in one file, or one by one on a page that folds them for a phone."""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from infalign_jax.reporting import style

GLYPH = "DejaVu"  # ids of letters begin with the name of the font


class Panel(NamedTuple):
    """`draw(axes)` fills one pair of axes; `size` is its natural width and height in inches."""

    draw: Callable
    size: tuple = (5.4, 4.0)


class Picture(NamedTuple):
    """Named panels with a title and a plain-text caption that says what is seen, in which unit, with which interval."""

    name: str
    title: str
    caption: str
    panels: list
    columns: int = 1

    def figure(self):
        """One matplotlib Figure with all panels, `columns` in a row, under the title."""
        rows = [self.panels[start : start + self.columns] for start in range(0, len(self.panels), self.columns)]
        widths = [max(row[column].size[0] for row in rows if column < len(row)) for column in range(len(rows[0]))]
        heights = [max(panel.size[1] for panel in row) for row in rows]
        return _draw(self.panels, widths, heights, self.title)

    def figures(self):
        """One Figure a panel, in order."""
        return [_draw([panel], [panel.size[0]], [panel.size[1]], None) for panel in self.panels]

    def _repr_png_(self):
        return png(self.figure())


def _draw(panels, widths, heights, title):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _quiet_style():
        extra = 0.5 if title else 0.0
        figure = Figure(figsize=(sum(widths), sum(heights) + extra), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1, wspace=0.03, hspace=0.04)
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
        grid = figure.add_gridspec(len(heights), len(widths), width_ratios=widths, height_ratios=heights)
        for index, panel in enumerate(panels):
            panel.draw(figure.add_subplot(grid[divmod(index, len(widths))]))
        figure.get_layout_engine().execute(figure)  # once, here: saving would do it again
        figure.set_layout_engine("none")
    return figure


@contextlib.contextmanager
def _quiet_style():
    import matplotlib

    with matplotlib.rc_context(style.RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box; tables show the letter
        yield


def _save(figure, **options):
    buffer = io.BytesIO()
    with _quiet_style():
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def png(figure):
    """The figure as PNG bytes, on white."""
    return _save(figure, format="png")


def save(pictures, folder):
    """Writes every picture as `folder`/NAME.png and returns the paths."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in pictures:
        path = folder / f"{picture.name}.png"
        path.write_bytes(png(picture.figure()))
        paths.append(path)
    return paths


def inline_svg(figure, prefix, label):
    """The figure as an <svg> element for a page: colours become CSS variables, so that it follows the page's theme.

    Ids get `prefix`, for several figures share one page; comments and metadata go; `label` (already escaped) is what a
    screen reader says.
    """
    text = _save(figure, format="svg", metadata={"Date": None}, transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(rf'\bid="(?!{GLYPH})', f'id="{prefix}-', text)
    text = re.sub(rf'href="#(?!{GLYPH})', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    for color, variable in theme_variables().items():
        text = re.sub(re.escape(color), f"var({variable})", text, flags=re.IGNORECASE)
    text = re.sub(
        r'<svg ([^>]*?)(width|height)="[\d.]+pt" ([^>]*?)(width|height)="[\d.]+pt"', r"<svg \1\3", text, count=1
    )
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d{2})\d+", r"\1", path[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).strip()


def share_glyphs(page):
    """The page with every glyph defined once: the figures of a page refer to the same letters."""
    seen = set()

    def first(match):
        fresh = match[1] not in seen
        seen.add(match[1])
        return match[0] if fresh else ""

    return re.sub(rf'<path id="({GLYPH}[^"]*)"[^>]*/>\n?', first, page)


def theme_variables():
    """{colour in a light figure: name of the CSS variable that replaces it on a page}."""
    return {**style.THEME, **{look.color: f"--look-{index}" for index, look in enumerate(style.LOOKS.values())}}


def spread(positions, gap):
    """Positions moved as little as possible (least squares) so that neighbours are at least `gap` apart, order kept.

    Isotonic regression of position − rank·gap by pooling adjacent violators.
    """
    ranked = sorted(range(len(positions)), key=lambda index: positions[index])
    pools = []
    for rank, index in enumerate(ranked):
        pools.append([positions[index] - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            value, count = pools.pop()
            pools[-1] = [(pools[-1][0] * pools[-1][1] + value * count) / (pools[-1][1] + count), pools[-1][1] + count]
    levels = [value for value, count in pools for _ in range(count)]
    moved = [math.nan] * len(positions)
    for rank, index in enumerate(ranked):
        moved[index] = levels[rank] + rank * gap
    return moved

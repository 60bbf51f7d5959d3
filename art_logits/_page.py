"""What the HTML pages are made of: tables, drawings, pictures, and the template that they fill.

A page is one file that loads nothing: its content security policy forbids every source but its own style,
its own script (by hash) and the pictures inside it, so that not even a name that slips through runs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from art_logits import figures
from art_logits._extras import require

if TYPE_CHECKING:
    import jinja2
    import markupsafe
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    jinja2 = require("jinja2", extra="evaluate")
    markupsafe = require("markupsafe", extra="evaluate")
    Figure = require("matplotlib.figure", extra="evaluate").Figure

__all__ = ["COLOURS", "FOLD", "Picture", "Row", "Table", "draw", "fill", "folded", "png_uri", "some"]

# Drawn in these and replaced by the page's own CSS variables, so that one drawing serves both themes.
_INK, COLOURS = "#010203", figures.Palette(clean="#010204", robust="#010205")
_THEME = {_INK: "currentColor", COLOURS.clean: "var(--clean)", COLOURS.robust: "var(--robust)"}

FOLD = 60
"""Rows that a table shows at once; of a longer one the ends are shown, and the whole is folded away."""
_FIRST, _LAST = 15, 5
_LARGE = 40  # rem: a heat map of more than 14 classes
# A number, or the dash or nothing that stands for a missing one; as in page.js, which sorts by it.
_NUMBER = re.compile(r"[<+]?-?\d|-?$")


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        name: its head.
        cells: as text; the page sorts by the number that a cell starts with.
        mark: a word beside the name that makes the row stand out, or nothing.
    """

    name: str
    cells: list[str]
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table that the page can sort.

    Attributes:
        label: what it is, for screen readers, and in the line that unfolds it.
        heads: of the names and of the cells.
        rows: all of them.
        total: a last row that stays where it is.
        excerpt: rows that are shown where the table is too long to be shown at once; else none.
        about: which rows the excerpt has.
    """

    label: str
    heads: Sequence[str]
    rows: Sequence[Row]
    total: Row | None = None
    excerpt: Sequence[Row] = field(default=())
    about: str = ""

    @cached_property
    def words(self) -> frozenset[int]:
        """Columns of words, counted from 0 after the names: they are read from the left."""
        columns = zip(*(row.cells for row in self.rows), strict=True)
        return frozenset(
            index for index, cells in enumerate(columns) if not all(_NUMBER.match(cell) for cell in cells)
        )


def folded(table: Table, values: Sequence[float], about: str) -> Table:
    """Fold a table that is too long to be shown at once.

    Args:
        table: of any length.
        values: one per row; shown are the 15 smallest and the 5 largest. NaN counts as neither.
        about: which these are, such as ``"worst"`` and what follows it.

    Returns:
        ``table`` itself where it has at most :data:`FOLD` rows; else with an excerpt.

    >>> table = Table("squares", ["n", "n * n"], [Row(str(n), [str(n * n)]) for n in range(100)])
    >>> [row.name for row in folded(table, range(100), "smallest and largest").excerpt][-6:]
    ['14', '95', '96', '97', '98', '99']
    """
    if len(table.rows) <= FOLD:
        return table
    order = sorted((i for i in range(len(values)) if values[i] == values[i]), key=lambda i: values[i])
    excerpt = [*order[:_FIRST], *order[_FIRST:][-_LAST:]]
    return Table(
        table.label, table.heads, table.rows, table.total, [table.rows[index] for index in excerpt], about
    )


@dataclass(frozen=True)
class Picture:
    """A drawing and its caption."""

    svg: markupsafe.Markup
    caption: str


def draw(
    name: str, size: tuple[float, float], plot: Callable[[Axes], object], description: str, caption: str
) -> Picture:
    """Draw into the page.

    Args:
        name: makes the ids inside the drawing unique in the page.
        size: width and height in inches; on the page, one inch is at most 72 pixels of CSS and 1.35 of them.
        plot: draws into the axes that it is given, in :data:`COLOURS`.
        description: for screen readers.
        caption: for all readers.

    Returns:
        The drawing as inline SVG whose colours follow the page's theme.
    """
    with figures.style(_INK, svg_fonttype="none", svg_hashsalt=name):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure.subplots())
        return Picture(_svg(figure, description), caption)


def _svg(figure: Figure, description: str) -> markupsafe.Markup:
    """The figure as inline SVG in the page's colours, with a description for screen readers."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # The browser draws the text, in a font that has the character.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    for sentinel, colour in _THEME.items():
        svg = svg.replace(sentinel, colour)
    # Inline, an SVG needs no prolog, no namespaces and no fixed size; ids of groups would occur twice.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
    view = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    width = 1.35 * figure.get_figwidth() * 72 / 16
    # A large one is scrolled on a phone, where it could not be read in the page's width.
    least = f";min-width:{0.7 * width:.1f}rem" if width > _LARGE else ""
    head = markupsafe.Markup('<svg role="img" aria-label="{}" style="max-width:{:.1f}rem{}" {}>').format(
        description, width, least, markupsafe.Markup(view.group() if view else "")
    )
    return head + markupsafe.Markup(body)


def png_uri(png: bytes) -> str:
    """A PNG file as the source of an image.

    >>> png_uri(b"abc")
    'data:image/png;base64,YWJj'
    """
    return "data:image/png;base64," + base64.b64encode(png).decode()


def fill(name: str, **values: Any) -> str:
    """Fill a template of the package; text is escaped.

    Args:
        name: file in ``art_logits/templates``.
        values: what the template needs; one that is missing is an error.

    Returns:
        The filled page.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_unbroken,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["whole"] = _whole
    script = _template("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page: str = environment.get_template(name).render(
        script=markupsafe.Markup(script), script_hash=f"sha256-{digest}", **values
    )
    return page


def _unbroken(value: Any) -> Any:
    r"""Text whose percent signs stay with their numbers; markup is left alone.

    >>> _unbroken("95 % interval") == "95\xa0% interval"
    True
    """
    return re.sub(r"(?<=\d) %", "\xa0%", value) if type(value) is str else value


def _whole(text: str) -> markupsafe.Markup:
    r"""A sentence whose intervals do not end up on two lines, which browsers part at the hyphen.

    >>> str(_whole("<b> (95 % interval 1.5-2.5%)"))
    '&lt;b&gt; (95\xa0% interval <span class="whole">1.5-2.5%)</span>'
    """
    escaped = str(markupsafe.escape(_unbroken(text)))
    return markupsafe.Markup(
        re.sub(r"(?<!\S)\S?\d[\d.]*-\d\S*", r'<span class="whole">\g<0></span>', escaped)
    )


def _template(file: str) -> str:
    folder = resources.files("art_logits").joinpath("templates")
    return folder.joinpath(file).read_text(encoding="utf-8")


def some(names: Iterable[str], limit: int = 10) -> str:
    """The first of several names, and how many more there are.

    >>> some("abc", limit=2)
    'a, b and 1 more'
    """
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more

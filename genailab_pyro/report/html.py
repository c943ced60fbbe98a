"""A report as one HTML file that needs nothing beside itself."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal, Self

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from genailab_pyro.files import write_whole
from genailab_pyro.report.tables import Formats, Table, as_table, as_text

_CSS_PIXELS_PER_INCH = 96
_SHARPNESS = 2
_CONTENTS_FROM = 4
_COUNTED = ("figure", "table")


@dataclass(frozen=True)
class _Block:
    """A part of a section, and what its kind needs."""

    kind: Literal["paragraph", "bullets", "table", "figure", "key_figures", "note", "warning"]
    text: str = ""
    items: tuple[str, ...] = ()
    key_figures: tuple[tuple[str, str, str], ...] = ()
    table: Table | None = None
    image: str = ""
    alt: str = ""
    width: int = 0
    height: int = 0
    number: int = 0


@dataclass
class _Section:
    """A heading, its anchor, and what stands under it."""

    heading: str
    anchor: str
    blocks: list[_Block] = field(default_factory=list)


class Report:
    """A report, built from top to bottom and written as one self-contained HTML file.

    Figures are embedded, styles are inline, and there is no script. All text is escaped, so that names and
    labels of any spelling are shown as they are. The same content gives the same bytes: the file bears no
    date. Methods return the report, so that calls can be chained.

    Args:
        title: Title of the page.
        summary: What was done and found, in a sentence or two.
        versions: Versions of the packages, and whatever else is needed to make the report again (seed,
            device), for the foot of the page.

    Example:
        >>> import pandas as pd
        >>> report = Report("Held-out fit", "Two likelihoods, the same cells.", versions={"torch": "2.4.0"})
        >>> report = report.key_figures({"Cells held out": 70, "Best ELBO": (-812.3, "nats per cell")})
        >>> report = report.section("Models", "Both were trained with the same seed.")
        >>> elbo = pd.DataFrame({"ELBO": [-812.3, -845.2]}, index=["NB", "ZINB"])
        >>> report = report.table(elbo, "Held-out ELBO, nats per cell.")
        >>> report.html().startswith("<!doctype html>")
        True
    """

    def __init__(self, title: str, summary: str = "", *, versions: Mapping[str, object] | None = None) -> None:
        if not title.strip():
            message = "a report must have a title, got an empty one"
            raise ValueError(message)
        self.title = title
        self.summary = summary
        self.versions = {str(name): str(version) for name, version in (versions or {}).items()}
        self._lead: list[_Block] = []
        self._sections: list[_Section] = []
        self._counts = dict.fromkeys(_COUNTED, 0)

    def section(self, heading: str, *paragraphs: str) -> Self:
        """Begin a section; what is added next belongs to it.

        Raises:
            ValueError: If the heading is empty.
        """
        if not heading.strip():
            message = "a section must have a heading, got an empty one"
            raise ValueError(message)
        self._sections.append(_Section(heading, self._anchor(heading)))
        for text in paragraphs:
            self.paragraph(text)
        return self

    def paragraph(self, text: str) -> Self:
        """Add a paragraph of plain text."""
        return self._add(_Block("paragraph", text=text))

    def bullets(self, items: Sequence[str]) -> Self:
        """Add a list of points."""
        return self._add(_Block("bullets", items=tuple(str(item) for item in items)))

    def note(self, text: str) -> Self:
        """Add a note that stands out."""
        return self._add(_Block("note", text=text))

    def warning(self, text: str) -> Self:
        """Add a warning that stands out."""
        return self._add(_Block("warning", text=text))

    def key_figures(self, figures: Mapping[str, object]) -> Self:
        """Add a row of headline numbers.

        Args:
            figures: Name of each and its value: text, a number, or a pair of the value and its unit.

        Raises:
            ValueError: If there is none.
        """
        if not figures:
            message = "key_figures must hold at least one figure, as {name: value}; it is empty"
            raise ValueError(message)
        return self._add(_Block("key_figures", key_figures=tuple(_headline(*item) for item in figures.items())))

    def table(self, frame: pd.DataFrame, caption: str, *, formats: Formats | None = None) -> Self:
        """Add a table.

        Args:
            frame: The table; its index names the rows, unless it is the default one.
            caption: What the table shows, with units.
            formats: A format specification such as ``".3f"`` for all columns of numbers, or one for each
            column
                named; see :func:`genailab_pyro.report.tables.as_table`.

        Raises:
            TypeError: If ``frame`` is no DataFrame.
            ValueError: If it cannot be shown as a flat table, or the caption is empty.
        """
        self._require(caption, "a table must have a caption that says what it shows")
        return self._add(_Block("table", text=caption, table=as_table(frame, formats), number=self._count("table")))

    def figure(self, figure: Figure, caption: str, *, alt: str) -> Self:
        """Add a figure, as a picture at twice the resolution of the page.

        It is drawn now: what happens to the figure later does not change the report.

        Args:
            figure: A matplotlib figure.
            caption: What the figure shows.
            alt: What is seen in it, for those who do not see it.

        Raises:
            TypeError: If ``figure`` is no matplotlib figure.
            ValueError: If the caption or the alternative text is empty.
        """
        if not isinstance(figure, Figure):
            message = f"figure must be a matplotlib Figure, got {type(figure).__name__}; of axes, pass axes.figure"
            raise TypeError(message)
        self._require(caption, "a figure must have a caption that says what it shows")
        self._require(alt, "a figure must have an alternative text, alt=, that says what is seen in it")
        width, height = (round(inches * _CSS_PIXELS_PER_INCH) for inches in figure.get_size_inches())
        return self._add(
            _Block(
                "figure",
                text=caption,
                image=_png(figure),
                alt=alt,
                width=width,
                height=height,
                number=self._count("figure"),
            )
        )

    def html(self) -> str:
        """The page as text."""
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        source = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
        return environment.from_string(source).render(
            title=self.title,
            summary=self.summary,
            lead=self._lead,
            sections=self._sections,
            contents=len(self._sections) >= _CONTENTS_FROM,
            versions=self.versions,
        )

    def write(self, path: str | Path) -> Path:
        """Write the page to one file, in one step; a file that is there is replaced.

        Raises:
            ValueError: If the path is a folder.
        """
        return write_whole(path, self.html())

    def _add(self, block: _Block) -> Self:
        (self._sections[-1].blocks if self._sections else self._lead).append(block)
        return self

    def _count(self, kind: str) -> int:
        self._counts[kind] += 1
        return self._counts[kind]

    def _anchor(self, heading: str) -> str:
        stem = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        return f"s{len(self._sections) + 1}-{stem}"

    @staticmethod
    def _require(text: str, message: str) -> None:
        if not text.strip():
            raise ValueError(message)


def _headline(name: str, value: object) -> tuple[str, str, str]:
    number, unit = value if isinstance(value, tuple) else (value, "")
    return name, as_text(number).replace("± ", "±\N{NO-BREAK SPACE}"), unit


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format="png",
        dpi=_SHARPNESS * _CSS_PIXELS_PER_INCH,
        facecolor="white",
        metadata={"Software": None},
    )
    return base64.b64encode(buffer.getvalue()).decode("ascii")

"""A report is one whole file that shows what it was given."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from genailab_pyro.plots import kl_per_latent
from genailab_pyro.report import Report

HOSTILE = "<script>alert(\"1\")</script> & 'x' {{ 7 * 7 }}"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements of a page with their attributes and text, and whether they are nested well."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        wanted = attributes.items()
        return [
            element
            for element in self.elements
            if element["tag"] == tag and all(element.get(name) == value for name, value in wanted)
        ]

    def texts(self, tag, **attributes):
        return [" ".join(element["text"].split()) for element in self.all(tag, **attributes)]


def square(colour="red"):
    figure = Figure(figsize=(2, 1))
    figure.subplots().bar([0, 1], [1, 2], color=colour)
    return figure


def full():
    frame = pd.DataFrame({"cells": [2700, 700]}, index=pd.Index(["pbmc3k", "pbmc68k"], name="data"))
    report = Report("Fit of two models", "Both on the same cells.", versions={"torch": "2.4.0", "seed": 0})
    report.key_figures({"ELBO": ("-812.3 ± 0.4", "nats per cell"), "cells": 2700})
    for heading in ("Data", "Fit", "Counts", "Limits"):
        report.section(heading, f"About {heading}.", "Second paragraph.")
    report.table(frame, "Cells per data set.").figure(square(), "Two bars.", alt="The right bar is twice the left.")
    return report.bullets(["first", "second"]).note("A note.").warning("A warning.")


def images(page):
    sources = [element["src"] for element in page.all("img")]
    return [imread(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))) for source in sources]


def test_nothing_outside_the_file_is_referred_to():
    text = full().html()
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    for element in page.elements:
        assert element.get("src", "data:").startswith("data:")
        assert element.get("href", "#").startswith("#")


def test_the_page_forbids_the_network_by_itself():
    (policy,) = Page(full().html()).all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:")


def test_every_figure_is_embedded_at_twice_the_size_it_is_shown():
    report = Report("Two").figure(square(), "Bars.", alt="bars").figure(kl_per_latent([1, 2]), "KL.", alt="kl")
    page = Page(report.html())
    for element, picture in zip(page.all("img"), images(page), strict=True):
        shown = np.array([int(element["height"]), int(element["width"])])
        assert np.abs(picture.shape[:2] - 2 * shown).max() <= 1
        assert picture.min() < 0.5 < picture.max()
    assert page.all("img")[0]["width"] == "192"


def test_figures_keep_what_they_showed_when_they_were_added():
    figure = square("red")
    report = Report("Bars").figure(figure, "Bars.", alt="bars")
    before = report.html()
    figure.axes[0].clear()
    assert report.html() == before
    assert figure.get_dpi() == 100


def test_figures_and_tables_are_numbered_captioned_and_described():
    report = full().figure(square(), "More bars.", alt="again")
    page = Page(report.html())
    assert page.texts("figcaption") == ["Figure 1. Two bars.", "Figure 2. More bars."]
    assert page.texts("caption") == ["Table 1. Cells per data set."]
    assert [element["alt"] for element in page.all("img")] == ["The right bar is twice the left.", "again"]


@pytest.mark.parametrize("count", [3, 4])
def test_contents_come_with_more_than_three_sections(count):
    report = Report("Parts")
    for number in range(count):
        report.section(f"Part {number}")
    page = Page(report.html())
    if count == 3:
        assert not page.all("nav")
        return
    links = {element["href"]: element["text"] for element in page.all("a")}
    assert links == {f"#{element['id']}": element["text"] for element in page.all("h2")}
    assert len(links) == 4


def test_sections_of_one_name_have_anchors_of_their_own():
    page = Page(Report("Parts").section("Fit").section("Fit").section("\N{GREEK SMALL LETTER BETA}").html())
    anchors = [element["id"] for element in page.all("h2")]
    assert len(set(anchors)) == 3
    assert all(re.fullmatch(r"s\d+-[a-z0-9-]+", anchor) for anchor in anchors)


def test_all_that_a_user_writes_is_escaped():
    report = Report(HOSTILE, HOSTILE, versions={HOSTILE: HOSTILE}).key_figures({HOSTILE: (HOSTILE, HOSTILE)})
    for _ in range(4):
        report.section(HOSTILE, HOSTILE)
    frame = pd.DataFrame({HOSTILE: [HOSTILE]}, index=pd.Index([HOSTILE], name=HOSTILE))
    report.bullets([HOSTILE]).note(HOSTILE).warning(HOSTILE)
    report.table(frame, HOSTILE).figure(square(), HOSTILE, alt=HOSTILE)
    text = report.html()
    page = Page(text)
    assert "<script" not in text
    assert not page.all("script")
    assert page.texts("title") == page.texts("h1") == [HOSTILE]
    assert page.texts("td") == page.texts("th", scope="row") == [HOSTILE]
    assert page.all("img")[0]["alt"] == HOSTILE
    assert text.count("&lt;script&gt;") == 30


def test_text_stands_in_the_order_in_which_it_was_added():
    page = Page(full().html())
    assert page.texts("h1") == ["Fit of two models"]
    assert page.texts("h2") == ["Data", "Fit", "Counts", "Limits"]
    tags = [element["tag"] for element in page.elements]
    last = tags[len(tags) - tags[::-1].index("h2") :]
    kinds = ("p", "table", "figure", "ul", "aside")
    assert [tag for tag in last if tag in kinds][:7] == ["p", "p", "table", "figure", "ul", "aside", "p"]
    assert page.texts("aside") == ["Note: A note.", "Warning: A warning."]
    assert page.texts("li")[-2:] == ["first", "second"]


def test_headline_figures_show_name_value_and_unit():
    page = Page(Report("r").key_figures({"ELBO": (-812.345, "nats"), "cells": np.int64(2700), "best": "stl"}).html())
    assert page.texts("dt") == ["ELBO", "cells", "best"]
    assert page.texts("dd") == ["-812.3nats", "2,700", "stl"]


def test_table_headings_have_their_scope():
    page = Page(full().html())
    assert page.texts("th", scope="col") == ["data", "cells"]
    assert page.texts("th", scope="row") == ["pbmc3k", "pbmc68k"]
    assert page.texts("td", **{"class": "number"}) == ["2,700", "700"]
    assert page.all("thead")
    (region,) = page.all("div", role="region")
    assert region["aria-labelledby"] == page.all("caption")[0]["id"]


def test_versions_are_at_the_foot():
    page = Page(full().html())
    (foot,) = page.texts("footer")
    assert foot == "Made with torch2.4.0 seed0"
    assert not Page(Report("r").html()).all("footer")


def test_the_same_content_gives_the_same_bytes():
    assert full().html() == full().html()


def test_a_page_is_readable_on_a_phone_and_on_paper():
    text = full().html()
    (viewport,) = Page(text).all("meta", name="viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"
    assert "@media print" in text
    assert '<html lang="en">' in text


def test_a_report_is_written_and_replaced(tmp_path):
    path = tmp_path / "runs" / "report.html"
    path.parent.mkdir()
    path.write_text("old")
    assert full().write(path) == path
    assert path.read_text(encoding="utf-8") == full().html()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("add", "error", "message"),
    [
        (lambda report: report.section(" "), ValueError, "heading"),
        (lambda report: report.key_figures({}), ValueError, "at least one figure"),
        (lambda report: report.figure(square(), "", alt="a"), ValueError, "caption"),
        (lambda report: report.figure(square(), "a", alt=" "), ValueError, "alternative text"),
        (
            lambda report: report.figure(square().axes[0], "a", alt="a"),
            TypeError,
            "matplotlib Figure, got Axes",
        ),
        (lambda report: report.table(pd.DataFrame({"a": [1]}), ""), ValueError, "caption"),
        (lambda report: report.table([[1]], "a"), TypeError, "pandas DataFrame, got list"),
        (lambda _: Report(""), ValueError, "title"),
    ],
)
def test_what_cannot_be_shown_is_refused(add, error, message):
    with pytest.raises(error, match=message):
        add(Report("r"))


def test_a_refused_figure_leaves_no_gap_in_the_numbers():
    report = Report("r")
    with pytest.raises(ValueError, match="caption"):
        report.figure(square(), "", alt="a")
    with pytest.raises(TypeError, match="DataFrame"):
        report.table([[1]], "a")
    report.figure(square(), "Bars.", alt="a").table(pd.DataFrame({"a": [1]}), "A.")
    assert Page(report.html()).texts("figcaption") == ["Figure 1. Bars."]
    assert Page(report.html()).texts("caption") == ["Table 1. A."]

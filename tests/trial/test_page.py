"""The report: whole, in itself, and safe with any names."""

import json
import math
from html.parser import HTMLParser

import pytest

from linboost_optax._trial import pictures
from linboost_optax._trial.outcome import Trial
from tests.trial.records import curve, entry, record, three, worth_it

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Checks that tags close, and gathers what the page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.cells, self.figures = [], [], [], 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.figures += tag == "figure"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.loads.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


@pytest.fixture(scope="module")
def page():
    return Trial(worth_it()).html()


def test_nothing_is_loaded_from_elsewhere(page):
    found = Reader(page)
    assert found.loads == []
    assert "url(http" not in page
    assert "<script" not in page


def test_it_has_pictures_table_change_and_verdict(page):
    found = Reader(page)
    assert found.figures == 3
    assert found.cells[:4] == ["yours", "0.001", "1.00x", "1.00x"]
    assert len(found.cells) == 3 * 10
    assert "Worth it: polar at 0.01" in page
    assert '<span class="added">+tx = polar(0.01)</span>' in page


def test_pictures_take_the_colour_of_the_pages_text(page):
    assert "#010203" not in page
    assert page.count("currentColor") > 20
    assert "prefers-color-scheme: dark" in page


def test_names_are_escaped():
    found = worth_it()
    found["task"] = "<script>alert(1)</script>"
    found["conditions"] = {"<b>layer": (9.0, 2.0)}
    page = Trial(found).html()
    assert "<script" not in page
    assert "<b>layer" not in page


def test_pictures_are_the_same_twice():
    assert pictures.curves(worth_it()) == pictures.curves(worth_it())


@pytest.mark.parametrize(
    "losses",
    [
        [8.0, math.nan, math.inf, 1e30, math.nan],
        [-8.0, -9.0, -9.5, -9.7, -9.8],
        [0.0, 0.0, 0.0, 0.0, 0.0],
    ],
    ids=["diverged", "negative", "zero"],
)
def test_any_losses_can_be_drawn(losses):
    runs = three(losses)
    found = record(
        {
            "own": entry("yours", 1e-3, runs, {1e-3: losses[-1], 1e-2: math.inf}),
            "polar": entry("polar", 1e-2, [curve(losses[:3])] * 3, tapped=True),
        }
    )
    found["start"] = {"train_loss": losses[0] / 2, "test_loss": losses[0]}
    Reader(Trial(found).html())


def test_a_record_that_was_written_reads_as_before(tmp_path):
    trial = Trial(worth_it())
    written, report = trial.save(tmp_path / "new" / "folder")
    assert report.read_text() == trial.html()
    again = Trial(json.loads(written.read_text()))
    assert str(again) == str(trial)


def test_a_notebook_shows_it_in_a_frame():
    text = Trial(worth_it())._repr_html_()
    assert text.startswith("<iframe srcdoc=")
    assert text.count('"') == 4  # those of two attributes: the page's are escaped

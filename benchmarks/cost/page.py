"""What `python -m benchmarks cost` writes: a figure, and the tables of a page."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import figures
from benchmarks.cost.figure import draw
from benchmarks.job import Result
from benchmarks.jobs import JOBS
from benchmarks.report import Results, docs_for
from benchmarks.results import of_tasks

SOURCES = ("growth", "scaling", "large_models")


def write(folder: Path, found: Results) -> list[Path]:
    """Draws the figure, and puts the tables into the page, beside a folder of JSON.

    Raises:
      ValueError: where a job was not run on all its tasks, or the page has no place
        for a table.
    """
    docs = docs_for(folder)
    page, picture = docs / "cost.md", docs / "figures" / "cost.png"
    results = {name: ordered(name, found) for name in SOURCES}
    figures.save_small(draw(results), picture)
    page.write_text(filled(page.read_text(), tables(results)))
    return [page, picture]


def ordered(name: str, found: Results) -> list[Result]:
    """The results of all tasks of a job, in its order."""
    return of_tasks(found, name, JOBS[name].tasks, "The page of costs")


def tables(results: dict[str, list[Result]]) -> dict[str, str]:
    """The table of each job across its tasks."""
    made = {}
    for name, each in results.items():
        across = JOBS[name].across
        assert across is not None, f"`{name}` has no table across tasks"
        made[name] = across(each)
    return made


def filled(text: str, tables: dict[str, str]) -> str:
    """A page with every table between the two comments of its name."""
    for name, table in tables.items():
        place = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.S)
        new = f"<!-- {name} -->\n\n{table}\n\n<!-- /{name} -->"
        text, count = place.subn(lambda _, new=new: new, text)
        if count != 1:
            raise ValueError(
                f"The page of costs must have one place for the table of `{name}`, got "
                f"{count}. Put it between <!-- {name} --> and <!-- /{name} -->."
            )
    return text

"""What a job is: everything in which one differs from another, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]  # what a job found on one task: the content of a JSON file
BASELINE = "adam"  # the competitor that all others are measured against


@dataclass(frozen=True)
class Options:
    """What to run and where to write, from the command line."""

    tasks: tuple[str, ...]
    optimizers: tuple[str, ...]
    seeds: int
    out: str
    quick: bool = False  # a few steps, which prove only that it runs
    text: str | None = None  # the file that tasks on a text of one's own read
    folder: str | None = None  # where tasks on data of one's own read


@dataclass(frozen=True)
class Job:
    """A measurement that runs on one task after another.

    `run(task, options)` measures and returns a result that JSON can hold, with a
    "title"; `table(result)` is its Markdown; `figure(result, path)` draws it;
    `across(results)` is the Markdown of all tasks together, for the report. With a
    `guide` it has a file of that name in `docs/` instead of a section of the report,
    which begins with its `preface`.
    """

    name: str
    title: str  # the heading in the report, and the line in `--help`
    reading: str  # how to read the tables
    tasks: tuple[str, ...]  # what it runs by default
    run: Callable[[str, Options], Result]
    table: Callable[[Result], str]
    across: Callable[[Sequence[Result]], str] | None = None
    single: bool = True  # the report has the tables of single tasks, too
    figure: Callable[[Result, Any], None] | None = None
    all_tasks: tuple[str, ...] = ()  # what it can run; empty: the defaults only
    optimizers: tuple[str, ...] = ()  # its competitors by default, if one may choose
    all_optimizers: tuple[str, ...] = ()
    seeds: int | None = None  # how many by default; None: it has no seeds
    reads_text: bool = False  # whether it has tasks on a text of one's own
    in_folder: tuple[str, ...] = ()  # what it runs, too, where a folder is named
    guide: str | None = None
    preface: str = ""

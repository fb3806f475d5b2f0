"""The report of a trial on a table, as text, as a page, and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linboost_optax._trial import files, page
from linboost_optax._trial.svg import TEXT, new_figure, to_svg
from linboost_optax._trial.tables import aligned
from linboost_optax._trial.tabular import words
from linboost_optax._trial.tabular.compare import Record
from linboost_optax._trial.tabular.estimators import ILLS
from linboost_optax._trial.verdict import Verdict

HEADER = ("regressor", "test error", "deviation", "lower than ILLS", "seconds", "code")
READING = (
    "Test errors are root mean squares over the standard deviation of the target: 1 is "
    "that of its mean. Every split has training rows, on which settings are chosen by "
    "cross-validation, and test rows, on which nothing is chosen. Of those that no "
    "other is surely better than, the simplest is recommended; a difference is sure "
    "from two standard errors, corrected for training rows that splits have in common "
    "(Nadeau and Bengio 2003). Seconds are medians, settings included."
)


@dataclass(frozen=True)
class Sheet:
    """What came of a trial on a table; it prints in words.

    Attributes:
      record: everything that was measured: what JSON holds.
    """

    record: Record

    @property
    def verdict(self) -> Verdict:
        """Who is recommended, and why."""
        return words.judge(self.record)

    def rows(self) -> list[tuple[str, list[str]]]:
        """One row for everyone that was fitted on all splits."""
        done = len(self.record["splits"])
        found = []
        for name in words.competing(self.record):
            entry = self.record["entries"][name]
            lower = "-"
            if name != ILLS and ILLS in words.competing(self.record):
                lower = f"{words.difference(self.record, name, ILLS).lower} of {done}"
            spread = np.std(entry["errors"], ddof=1) if done > 1 else np.nan
            cells = [
                entry["label"],
                f"{words.mean(self.record, name):.3f}",
                f"{spread:.3f}",
                lower,
                f"{np.median(entry['seconds']):.2f}",
                words.code(self.record, name),
            ]
            found.append((name, cells))
        return found

    def facts(self) -> str:
        """What the table is, and how long it took."""
        record = self.record
        versions = ", ".join(f"{name} {of}" for name, of in record["versions"].items())
        return (
            f"{record['rows']} rows, {record['numbers']} numbers, "
            f"{record['categories']} categories; {len(record['splits'])} splits in "
            f"{record['elapsed_seconds'] / 60:.1f} of {record['minutes']:g} minutes; "
            f"{versions}."
        )

    def html(self) -> str:
        """Returns the report as a page of its own."""
        rows = self.rows()
        judged = self.verdict
        body = [page.table("Figures", HEADER, rows, judged.winner, READING)]
        if rows:
            body.append(page.figure("Test errors, a dot a split", self.picture()))
        title = f"Trial: {self.record['task']}"
        return page.document(title, judged.headline, judged.reasons, body, self.facts())

    def picture(self) -> str:
        """The errors of all splits, as SVG."""
        names = words.competing(self.record)
        figure = new_figure(9, 0.9 + 0.4 * len(names))
        axis = figure.subplots()
        for place, name in zip(range(len(names), 0, -1), names):
            entry = self.record["entries"][name]
            heights = np.full(len(entry["errors"]), place)
            colour = "#D55E00" if name == ILLS else "#888888"
            axis.plot(entry["errors"], heights, "o", color=colour, alpha=0.6)
            axis.plot(words.mean(self.record, name), place, "|", ms=18, color=TEXT)
        labels = [self.record["entries"][name]["label"] for name in names]
        axis.set_yticks(range(len(names), 0, -1), labels)
        axis.set_ylim(0.4, len(names) + 0.6)
        axis.set_xlim(left=0)
        axis.set_xlabel("test error; the mean of a row is its line")
        axis.grid(axis="x", alpha=0.25, color=TEXT)
        return to_svg(figure)

    def json(self) -> str:
        """Returns the record as JSON."""
        return files.to_json(self.record)

    def save(self, folder: str | Path) -> list[Path]:
        """Writes report and record; returns their paths."""
        return files.write(folder, self.record["task"], self.json(), self.html())

    def __str__(self) -> str:
        lines = [list(HEADER), *(cells for _, cells in self.rows())]
        parts = [str(self.verdict), aligned(lines), READING, self.facts()]
        return "\n\n".join(parts)

"""What a trial returns: its record, and ways to read it."""

from __future__ import annotations

import functools
import html
from dataclasses import dataclass
from pathlib import Path

from linboost_optax._trial import files, tables
from linboost_optax._trial.analysis import Record
from linboost_optax._trial.reports import report
from linboost_optax._trial.verdict import Verdict, verdict


@dataclass(frozen=True)
class Trial:
    """What came of a trial: it prints in words; a notebook shows its report.

    Attributes:
      record: everything that was measured: what JSON holds.
    """

    record: Record

    @functools.cached_property
    def verdict(self) -> Verdict:
        """Who is recommended, and why, in words."""
        return verdict(self.record)

    @property
    def table(self) -> str:
        """The figures of all that raced."""
        return tables.table(self.record)

    @property
    def change(self) -> str:
        """The lines to change for the one that is recommended."""
        return tables.change(self.record, self.verdict)

    def html(self) -> str:
        """Returns the report: one page, pictures included.

        Raises:
          ModuleNotFoundError: if matplotlib is not installed.
        """
        return report(self.record, self.verdict)

    def json(self) -> str:
        """Returns the record as JSON; what is not finite is null."""
        return files.to_json(self.record)

    def save(self, folder: str | Path) -> list[Path]:
        """Writes report and record; returns their paths.

        Args:
          folder: is made if there is none.
        """
        return files.write(folder, self.record["task"], self.json(), self.html())

    def __str__(self) -> str:
        parts = [str(self.verdict), self.table, tables.reading(self.record)]
        parts += [f"What to change:\n{self.change}", tables.facts(self.record)]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        """The report in a frame, so that its style is its own."""
        source = html.escape(self.html(), quote=True)
        style = "width: 100%; height: 800px; border: 0"
        return f'<iframe srcdoc="{source}" style="{style}"></iframe>'

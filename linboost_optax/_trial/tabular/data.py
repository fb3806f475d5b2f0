"""A table of the user's: read, checked, and what was done to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FEWEST_ROWS = 30
_UNIQUE = 0.5  # share of rows from which text that is unique names a row
_CATEGORIES = 10  # distinct values up to which text is never taken for names
_FAR = 8.0  # scaled deviations from the median: an outlier of the target


@dataclass(frozen=True)
class Table:
    """What is regressed.

    Attributes:
      name: of the file.
      x: a data frame of the inputs.
      y: targets, ``[row]``.
      numbers: columns that are numbers.
      categories: columns that are categories.
      outliers: how many targets are far from all others.
      notes: what was done to the file, in sentences.
    """

    name: str
    x: Any
    y: np.ndarray
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    outliers: int
    notes: tuple[str, ...]


def read(path: str | Path, target: str) -> Table:
    """Reads a CSV file with a heading.

    Rows without a target are left out, and so are columns that are constant, empty, or
    text that names rows; infinite inputs are missing ones.

    Raises:
      ValueError: if the file cannot be read, there is no such column, it is no number,
        or there are too few rows.
    """
    import pandas

    path = Path(path)
    try:
        frame: Any = pandas.read_csv(path)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise ValueError(
            f"`task` must be CSV with a heading, got '{path}': "
            f"{str(error).strip()}. Mend the file."
        ) from error
    if target not in frame:
        columns = ", ".join(map(str, frame.columns))
        raise ValueError(
            f"`--target` must be a column of '{path}', got '{target}'. Name one of "
            f"{columns}."
        )
    notes: list[str] = []
    y = _targets(frame.pop(target), target)
    known = np.isfinite(y)
    if not known.all():
        notes.append(f"{(~known).sum()} rows without a target were left out.")
    if known.sum() < FEWEST_ROWS:
        raise ValueError(
            f"'{path}' must have at least {FEWEST_ROWS} rows with a target, got "
            f"{known.sum()}. A test error of fewer says nothing."
        )
    x, y = frame[known].reset_index(drop=True), y[known]
    if np.ptp(y) == 0:
        raise ValueError(
            f"`--target` must vary, got {y[0]:g} in all rows of '{target}'. Name "
            "another."
        )
    x, numbers, categories = _columns(x, notes)
    if not (numbers or categories):
        raise ValueError(
            f"'{path}' must have a column beside '{target}' that varies. Add inputs."
        )
    outliers = _outliers(y)
    if outliers:
        notes.append(
            f"{outliers} targets are outliers: robust losses compete as well. The "
            "errors are root mean squares, which outliers rule."
        )
    return Table(
        path.stem, x, y, tuple(numbers), tuple(categories), outliers, tuple(notes)
    )


def _targets(column: Any, name: str) -> np.ndarray:
    import pandas

    numbers: Any = pandas.to_numeric(column, errors="coerce")
    bad = numbers.isna() & column.notna()
    if bad.any():
        raise ValueError(
            f"`--target` must be numbers, got {column[bad].iloc[0]!r} in '{name}'. "
            "This is for regression: for classes, take a classifier."
        )
    return numbers.to_numpy(float)


def _columns(x: Any, notes: list[str]) -> tuple[Any, list[str], list[str]]:
    """The inputs that are of use, and which are numbers and which categories."""
    import pandas

    numbers, categories, dropped = [], [], []
    x = x.rename(columns=str)
    for name in x.columns:
        column = x[name]
        if pandas.api.types.is_bool_dtype(column):
            column = column.astype(float)
        if pandas.api.types.is_numeric_dtype(column):
            values = column.to_numpy(float)
            endless = np.isinf(values)
            if endless.any():
                notes.append(
                    f"{endless.sum()} infinite values of '{name}' are missing."
                )
            x[name] = np.where(endless, np.nan, values)
        distinct = x[name].nunique()
        text = not pandas.api.types.is_numeric_dtype(x[name])
        if distinct < 2 or (text and distinct > max(_CATEGORIES, _UNIQUE * len(x))):
            dropped.append(name)
            continue
        (categories if text else numbers).append(name)
    if dropped:
        named = ", ".join(f"'{name}'" for name in dropped)
        notes.append(
            f"Left out, as constant or different in nearly every row: {named}."
        )
    missing = int(x[numbers + categories].isna().sum().sum())
    if missing:
        notes.append(
            f"{missing} inputs are missing: numbers were set to the median, with a "
            "column that says so; of categories it is one more."
        )
    return x[numbers + categories], numbers, categories


def _outliers(y: np.ndarray) -> int:
    """How many targets lie far from the median, in scaled absolute deviations."""
    away = np.abs(y - np.median(y))
    scale = 1.4826 * np.median(away)
    return int(np.sum(away > _FAR * scale)) if scale > 0 else 0

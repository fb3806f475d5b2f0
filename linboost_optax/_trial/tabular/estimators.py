"""Who competes on a table, each with a few settings to choose from by cross-validation.

From the simplest to the most complex: where two do as well, the simpler one is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from linboost_optax._trial.tabular.data import Table

MEAN, RIDGE, ILLS = "mean", "ridge", "ills"
_ALPHAS = tuple(np.logspace(-3, 3, 13))


@dataclass(frozen=True)
class Estimator:
    """One competitor.

    Attributes:
      label: its name in tables.
      build: makes it of a table and a seed.
      grid: settings that are tried, by parameter; of a table.
      code: what a user writes, of the settings that were chosen.
    """

    label: str
    build: Callable[[Table, int], Any]
    grid: Callable[[Table], dict[str, list[Any]]]
    code: str


def _mean(table: Table, seed: int) -> Any:
    from sklearn.dummy import DummyRegressor

    return DummyRegressor()


def _ridge(table: Table, seed: int) -> Any:
    from sklearn.linear_model import RidgeCV

    return RidgeCV(alphas=_ALPHAS)


def _ills(table: Table, seed: int) -> Any:
    from linboost_optax.sklearn import IllsRegressor

    return IllsRegressor(early_stopping=True, random_state=seed)


def _mlp(table: Table, seed: int) -> Any:
    from sklearn.neural_network import MLPRegressor

    return MLPRegressor(
        hidden_layer_sizes=(50,), early_stopping=True, max_iter=2000, random_state=seed
    )


def _trees(table: Table, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(random_state=seed)


def _ills_grid(table: Table) -> dict[str, list[Any]]:
    sizes = {"hidden_layer_sizes": [(10,), (20,), (50,)]}
    return sizes | ({"loss": ["squared", "huber"]} if table.outliers else {})


ESTIMATORS = {
    MEAN: Estimator("mean of the targets", _mean, lambda table: {}, "DummyRegressor()"),
    RIDGE: Estimator(
        "ridge", _ridge, lambda table: {}, "RidgeCV(np.logspace(-3, 3, 13))"
    ),
    ILLS: Estimator(
        "IllsRegressor", _ills, _ills_grid, "IllsRegressor({}, early_stopping=True)"
    ),
    "mlp": Estimator(
        "MLPRegressor",
        _mlp,
        lambda table: {"alpha": [1e-4, 1e-2, 1.0]},
        "MLPRegressor(hidden_layer_sizes=(50,), {}, early_stopping=True)",
    ),
    "trees": Estimator(
        "gradient boosting",
        _trees,
        lambda table: {"learning_rate": [0.03, 0.1, 0.3]},
        "HistGradientBoostingRegressor({})",
    ),
}


def search(estimator: Estimator, table: Table, seed: int) -> Any:
    """The competitor behind a pipeline, its settings chosen on the training rows."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(_preparation(table), estimator.build(table, seed))
    scaled = TransformedTargetRegressor(model, transformer=StandardScaler())
    grid = estimator.grid(table)
    if not grid:
        return scaled
    prefix = f"regressor__{model.steps[-1][0]}__"
    named = {prefix + name: values for name, values in grid.items()}
    return GridSearchCV(scaled, named, cv=3, scoring="neg_root_mean_squared_error")


def chosen(fitted: Any) -> dict[str, Any]:
    """The settings that a search chose, by parameter; none where it had no choice."""
    found = getattr(fitted, "best_params_", {})
    return {name.rpartition("__")[2]: value for name, value in found.items()}


def _preparation(table: Table) -> Any:
    """Missing values, categories and scales, for all alike."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True), StandardScaler()
    )
    categories = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        max_categories=20,
        sparse_output=False,
    )
    return make_column_transformer(
        (numbers, list(table.numbers)), (categories, list(table.categories))
    )

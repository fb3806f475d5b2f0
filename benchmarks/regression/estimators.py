"""Estimators of scikit-learn's kind that stop early, with all else by default."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.regression.races import QUICK


def early_stopped(
    make: Callable[..., Any],
    hidden: tuple[int, ...],
    rows: tuple[Any, Any],
    seed: int,
    *,
    quick: bool,
    **options: Any,
) -> Any:
    """A fitted estimator."""
    few = {"max_iter": QUICK} if quick else {}
    model = make(
        hidden_layer_sizes=hidden,
        early_stopping=True,
        random_state=seed,
        **options,
        **few,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It may not converge in its iterations.
        return model.fit(*rows)

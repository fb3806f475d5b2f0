"""PSGD with Kronecker-factored preconditioners, from the package `psgd-jax`.

Li (2018), arXiv:1512.04202; Pooladzandi and Li (2024), arXiv:2402.04553: `Q` is fitted
so that `Q^T Q g` has unit variance in every direction, by multiplicative updates on the
group of triangular matrices, one for each axis of a parameter.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
from typing import Any

import optax

_GONE = "optax._src.clipping"


def kron(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """The package's optimizer by its defaults.

    Raises:
      ImportError: if `psgd-jax` is not installed.
    """
    inner = _module().kron(learning_rate)

    def init(params: optax.Params) -> Any:
        # It prints sizes from within.
        with contextlib.redirect_stdout(io.StringIO()):
            return inner.init(params)

    return optax.GradientTransformation(init, inner.update)


def _module() -> Any:
    with _stand_in():
        try:
            return importlib.import_module("psgd_jax.kron")
        except ImportError as error:
            raise ImportError(
                "PSGD needs the package psgd-jax. Install it with "
                "`pip install -e '.[rivals]'`."
            ) from error


@contextlib.contextmanager
def _stand_in() -> Any:
    """An empty module where the package imports one of Optax's that is gone."""
    try:
        importlib.import_module(_GONE)
    except ImportError:
        sys.modules[_GONE] = types.ModuleType(_GONE)
        try:
            yield
        finally:
            del sys.modules[_GONE]
    else:
        yield

"""ILLS has moved: old names are forwarded with a warning, once and completely."""

import subprocess
import sys

import pytest

import linboost_optax as lbo
from linboost_optax import _moved, ills

OLD = [
    "Activation",
    "Dense",
    "IllsCode",
    "IllsResult",
    "IllsState",
    "LayerDiagnostics",
    "Network",
    "fit_ills",
    "ills_diagnostics",
    "init_mlp",
    "network",
    "plot_ills",
    "predict",
]


@pytest.mark.parametrize("name", OLD)
def test_old_names_are_forwarded(name):
    new = {"Dense": "DenseLayer"}.get(name, name)
    with pytest.warns(
        DeprecationWarning, match=f"Use `from linboost_optax.ills import {new}`"
    ) as caught:
        found = getattr(lbo, name)
    assert found is getattr(ills, new)
    assert caught[0].filename == __file__


def test_nothing_else_is():
    assert sorted(_moved.MOVED) == OLD
    assert not set(OLD) & set(lbo.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = lbo.nope


def test_importing_an_old_name_warns():
    with pytest.warns(DeprecationWarning, match="`linboost_optax.fit_ills` has moved"):
        from linboost_optax import fit_ills
    assert fit_ills is ills.fit_ills


def test_the_subpackage_needs_no_import_of_its_own():
    assert lbo.ills is ills
    assert callable(lbo.ills.ills)
    assert set(ills.__all__) <= set(dir(ills))


@pytest.mark.parametrize(("adapter", "other"), [("linen", "nnx"), ("nnx", "linen")])
def test_an_adapter_does_without_the_other(adapter, other):
    code = f"""
import sys
import linboost_optax.{adapter} as adapter
assert callable(adapter.network)
assert not any(name.endswith(".{other}") for name in sys.modules
               if name.startswith("linboost_optax"))
assert "matplotlib" not in sys.modules and "sklearn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)

"""Coverage: shares by hand, and what is told of models that are left out."""

import json
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import driver, results
from benchmarks.job import Options
from benchmarks.jobs import coverage
from benchmarks.models import MODELS, Example
from tests.benchmarks.test_models import loss_of_parameters
from tests.benchmarks.test_report import COMMITTED, cells

# Models are user code, which is not held to strict promotion.
pytestmark = pytest.mark.lenient("models are user code")

OPTIONS = Options(tasks=(), optimizers=(), seeds=1, out="", quick=True)


class Mixed(nn.Module):
    """A layer, a table that is added, and scales that have an axis more."""

    @nn.compact
    def __call__(self, x, train):
        assert train
        x = nn.Dense(4)(x) + self.param("positions", nn.initializers.zeros, (5, 4))
        return x * self.param("scale", nn.initializers.ones, (1, 4))


def of(model, **static):
    """An example of five rows with three features."""
    return Example(
        "Mine", model, lambda key: (jax.random.normal(key, (5, 3)),), static=static
    )


@pytest.fixture
def mixed(monkeypatch):
    monkeypatch.setitem(MODELS, "mine", lambda tiny: of(Mixed(), train=True))
    return coverage.run("mine", OPTIONS)


def test_shares_count_parameters_and_kernels(mixed):
    assert mixed["parameters"] == (3 * 4 + 4) + 5 * 4 + 4
    assert mixed["kernels"] == 3 * 4 + 5 * 4
    assert mixed["covered"] == 3 * 4 + 4
    assert mixed["kernels_covered"] == 3 * 4
    assert list(mixed["left"].values()) == [5 * 4]


def test_a_row_has_shares_and_the_reasons(mixed):
    mixed["left"] = {"no | such\n layer": 20}
    row = cells(coverage.across([mixed]), 2)
    assert row == ["Mine", "Linen", "40", "40.0%", "37.5%", "no / such layer (62.5%)"]
    shown = coverage.describe(mixed)
    assert shown.startswith(coverage.across([mixed]))
    assert "Dense_0  " in shown


def test_a_model_that_is_refused_is_covered_by_nothing(monkeypatch):
    monkeypatch.setitem(MODELS, "mine", lambda tiny: of(nn.LayerNorm()))
    result = coverage.run("mine", OPTIONS)
    assert (result["covered"], result["kernels_covered"]) == (0, 0)
    row = cells(coverage.describe(result), 2)
    assert row[2:5] == ["6", "0.0%", "0.0%"]
    assert row[5].startswith("ValueError: `model` LayerNorm has no layer")


class Tiny(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.LayerNorm(2, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.layer(x))


def test_models_in_nnx_are_made_of_shapes_alone(monkeypatch):
    asked = []

    def taps(model, x):
        asked.extend([*jax.tree.leaves(nnx.state(model)), x])
        return make(model, x)

    make = coverage.lbo_nnx.taps
    monkeypatch.setattr(coverage.lbo_nnx, "taps", taps)
    monkeypatch.setitem(MODELS, "mine", lambda tiny: of(Tiny))
    result = coverage.run("mine", OPTIONS)
    assert len(asked) == 5
    assert all(isinstance(array, jax.ShapeDtypeStruct) for array in asked)
    assert (result["parameters"], result["kernels"]) == (6 + 2 + 4, 6)
    assert (result["covered"], result["kernels_covered"]) == (8, 6)
    assert cells(coverage.describe(result), 2)[1] == "NNX"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_what_is_plain_and_what_is_tapped_is_every_parameter(name):
    example = MODELS[name](True)
    taps = coverage.taps_of(example)
    tapped = [shape for layer in taps.layers for shape in layer.shapes.values()]
    plain = [part.shape for part in taps.plain]
    every = [shape for _, shape in coverage.parameters(example)]
    assert sorted(map(math.prod, tapped + plain)) == sorted(map(math.prod, every))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_taps_reach_the_loss_and_leave_its_gradients(name):
    example = MODELS[name](True)
    taps = coverage.taps_of(example)
    library, params, loss_fn = loss_of_parameters(example)
    want = jax.jit(jax.grad(loss_fn))(params)
    _, got, stats = jax.jit(library.value_and_grad(loss_fn, taps))(params)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    counts = [stat.count for stat in stats.values()]
    assert counts
    assert all(np.all(count > 0) for count in counts)


def test_the_job_writes_and_prints(tmp_path, capsys):
    driver.main(
        ["coverage", "--quick", "--out", str(tmp_path), "--tasks", "vae", "ppo"]
    )
    result = json.loads((tmp_path / "coverage-vae.json").read_text())
    # 12 pixels, 6 hidden units, a code of 3: every parameter belongs to a layer.
    assert result["parameters"] == 13 * 6 + 2 * 7 * 3 + 4 * 6 + 7 * 12
    assert result["covered"] == result["parameters"]
    printed = capsys.readouterr().out
    assert "encoder/hidden  Dense + bias  12x6" in printed
    assert printed.count("| VAE ") == 2  # by itself, and beside the other


def test_committed_coverage_is_of_every_model_at_its_size():
    found = results.read_all(COMMITTED)["coverage"]
    assert set(found) == set(MODELS)
    for name, result in found.items():
        assert result["parameters"] > 1000
        assert result["title"] == MODELS[name](False).title

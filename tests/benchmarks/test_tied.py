"""The job on tied embeddings: its text, its tuning, its table."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import linboost_optax as lbo
from benchmarks import driver
from benchmarks.job import Options
from benchmarks.jobs import tied
from linboost_optax._kinds import Tied
from linboost_optax._layer import Affine


def test_words_are_the_most_frequent_ones_in_order():
    codes, vocabulary = tied.corpus("words")
    counts = np.bincount(codes, minlength=vocabulary)
    assert vocabulary == len(counts) == tied.WORDS + 1
    assert np.all(np.diff(counts[1:]) <= 0)
    assert counts[-1] > 0


def test_rates_are_tuned_on_the_first_seed_and_one_beyond_the_edge():
    asked = []

    def train(rate, seed):
        asked.append((round(float(rate), 6), int(seed)))
        return jnp.full(30, -float(rate) + int(seed))

    options = Options(tasks=(), optimizers=(), seeds=3, out="")
    found = tied._tuned(train, (0.1, 0.3, 0.9), options)
    rates = [0.1, 0.3, 0.9, 2.7]
    assert asked == [*((rate, 0) for rate in rates), (2.7, 1), (2.7, 2)]
    assert found["rate"] == 2.7
    assert list(found["tuning"]) == rates
    assert [curve[-1] for curve in found["curves"]] == pytest.approx([-2.7, -1.7, -0.7])
    assert all(len(curve) == 30 - tied.WINDOW + 1 for curve in found["curves"])


def test_steps_are_counted_to_where_a_plain_gradient_ends():
    rows = {
        "plain gradient": {"curves": [np.array([9.0, 5.0]), np.array([9.0, 5.0])]},
        "both uses": {"curves": [np.array([5.0, 4.0]), np.array([9.0, 6.0])]},
    }
    rows = {label: {"rate": 0.1, "tuning": {}, **row} for label, row in rows.items()}
    figures = tied._figures(rows)
    assert figures["both uses"]["steps_to_plain"] == [tied.WINDOW, None]
    assert figures["plain gradient"]["steps_to_plain"] == [tied.WINDOW + 1] * 2


def test_a_scaled_metric_is_one_layer_s_metric_times_a_number():
    layer = tied._layer(Tied(5, 3))
    metric = tied.Scaled(lbo.Cholesky(), "embed", 1 / 16).bind_factor(layer)
    plain = lbo.Cholesky().bind_factor(layer)
    state, g = metric.init(), Affine(jnp.ones((1, 5, 3)), None)
    for name, factor in (("whiten", 4), ("unwhiten", 4), ("coordinates", 1 / 4)):
        got = getattr(metric, name)(state, g)
        np.testing.assert_allclose(got.w, factor * getattr(plain, name)(state, g).w)
    got = metric.solve(state, None, g)
    np.testing.assert_allclose(got.w, 16 * np.ones((1, 5, 3)))
    other = tied.Scaled(lbo.Cholesky(), "head", 1 / 16).bind(layer)
    assert other == lbo.Cholesky().bind(layer)


@pytest.mark.slow
def test_tied_job(tmp_path, capsys):
    driver.main(["tied", "--quick", "--out", str(tmp_path), "--tasks", "characters"])
    result = json.loads((tmp_path / "tied-characters.json").read_text())
    for optimizer in tied.RATES:
        rows = result["optimizers_by_variant"][optimizer]
        assert list(rows) == ["plain gradient", "both uses"]
        for row in rows.values():
            assert len(row["losses"]) == result["seeds"] == 1
            assert all(np.isfinite(row["losses"]))
            assert len(row["tuning"]) == 2
    assert "| both uses " in capsys.readouterr().out

"""Rows of weight 0 after the data: nothing is changed, and little is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV

from linboost_optax import ills
from linboost_optax.ills._loop import run_loop
from linboost_optax.ills._numerics import chunks
from linboost_optax.ills._numerics.padding import pad_rows, padded_size
from linboost_optax.sklearn import IllsRegressor, _predict


@pytest.mark.parametrize(
    ("rows", "size"),
    [
        (1, 512),
        (512, 512),
        (513, 576),
        (576, 576),
        (577, 640),
        (1024, 1024),
        (1025, 1152),
        (65_537, 73_728),
        (1_000_000, 1_007_616),
    ],
)
def test_sizes(rows, size):
    assert padded_size(rows) == size


def test_sizes_are_few_and_near():
    rows = np.arange(512, 200_000)
    sizes = np.asarray([padded_size(int(n)) for n in rows])
    assert np.all(sizes >= rows)
    assert np.all(sizes - rows <= np.minimum(rows / 8, 8192))
    doublings, beyond = np.log2(65_536 / 512), -(-(200_000 - 65_536) // 8192)
    assert len(set(sizes.tolist())) == 1 + 8 * doublings + beyond
    assert padded_size(65, least=64) == 72


def test_full_arrays_are_not_copied():
    array = np.ones((8, 2))
    assert pad_rows(array, 8) is array
    np.testing.assert_array_equal(pad_rows(array[:, 0], 9), [1] * 8 + [0])


def data(rows, outputs, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    y = np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]][:outputs], axis=1)
    return x, y + 0.1 * rng.normal(size=y.shape), rng


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "huber"},
        {"loss": "tukey", "combine": "unit"},
        {"method": "published"},
        {"chunk_size": 17, "importance": "shared", "hidden_ridge": 1e-4},
        {"restarts": 1, "polish": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("details", [False, True])
def test_padding_changes_nothing_but_rounding(monkeypatch, options, details):
    """Weights, missing targets, validation data, and scales that read every row."""
    with jax.enable_x64(True):
        x, y, rng = data(60, 2, 0)
        x_val, y_val, _ = data(23, 2, 1)
        given, validation = {}, None
        if details:
            given["sample_weight"] = rng.integers(0, 3, 60)
            given["mask"] = rng.uniform(size=y.shape) < 0.8
            weights = rng.integers(0, 3, 23)
            mask = rng.uniform(size=y_val.shape) < 0.8
            validation = (x_val, y_val, weights, mask)
        params = ills.init_mlp(jax.random.key(0), (3, 6, 2), jnp.float64)

        def fit():
            return ills.fit_ills(
                ills.network(params),
                params,
                x,
                y,
                max_iter=12,
                validation=validation,
                **given,
                **options,
            )

        padded = fit()
        monkeypatch.setattr(chunks, "padded_size", lambda rows: rows)
        plain = fit()
        np.testing.assert_allclose(padded.objectives, plain.objectives, rtol=1e-9)
        np.testing.assert_allclose(padded.validation, plain.validation, rtol=1e-9)
        for a, b in zip(
            jax.tree.leaves(padded.params), jax.tree.leaves(plain.params), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8)
        assert padded.code == plain.code


def compiled(run):
    """How many programs of iterations and of predictions a call adds."""
    before = run_loop._cache_size(), _predict._cache_size()
    run()
    return run_loop._cache_size() - before[0], _predict._cache_size() - before[1]


def test_a_search_compiles_once():
    """Two candidates, folds of 205 and 206 rows, and all 308 of them."""
    x, y = (a[:308] for a in load_diabetes(return_X_y=True))
    model = IllsRegressor((3,), random_state=0, max_iter=4)
    search = GridSearchCV(model, {"alpha": [1e-4, 1e-2]}, cv=3)
    assert compiled(lambda: search.fit(x, y)) == (1, 1)
    assert search.cv_results_["mean_test_score"].shape == (2,)
    assert compiled(lambda: search.fit(x[:200], y[:200])) == (0, 1)
    longer = model.set_params(max_iter=5, tol=1e-3, n_iter_no_change=2)
    assert compiled(lambda: longer.fit(x, y)) == (0, 0)


def test_a_part_has_room_for_the_whole():
    """508 rows to train on at first, in the end 565: two sizes, but one program."""
    x, y = (np.resize(a, (565, *a.shape[1:])) for a in load_diabetes(return_X_y=True))
    model = IllsRegressor((4,), early_stopping=True, random_state=0, max_iter=4)
    assert padded_size(508) < padded_size(565)
    assert compiled(lambda: model.fit(x, y)) == (1, 0)


def test_a_fit_compiles_nothing_else(caplog):
    """The second of two fits, of other rows, weights and missing targets."""
    x, y, rng = data(90, 2, 0)
    params = ills.init_mlp(jax.random.key(0), (3, 7, 2))
    network = ills.network(params)

    def fit(rows):
        known, weights = rng.uniform(size=(rows, 2)) < 0.9, rng.uniform(size=rows)
        return ills.fit_ills(
            network,
            params,
            x[:rows],
            y[:rows],
            sample_weight=weights,
            mask=known,
            validation=(x[rows:], y[rows:]),
            max_iter=3,
            refit=1,
        )

    def programs(rows):
        caplog.clear()
        with jax.log_compiles():
            fit(rows)
        return [r.message for r in caplog.records if "Compiling" in r.message]

    assert any("run_loop" in message for message in programs(50))
    assert programs(61) == []


def test_sharded_data_stay_where_they_are():
    """Only data at hand are padded: to gather the others would undo their placement."""
    arrays = [jax.device_put(np.ones((8, 2), np.float32)) for _ in range(3)]
    batch = chunks.Batch(*arrays)
    assert batch.padded() is batch
    at_hand = chunks.Batch(*(np.asarray(a) for a in arrays)).padded()
    assert at_hand.inputs.shape == (512, 2)
    np.testing.assert_array_equal(at_hand.weights[8:], 0)

"""The scikit-learn estimator."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks

from linboost_optax.ills import IllsCode
from linboost_optax.sklearn import IllsRegressor

QUICK = {"hidden_layer_sizes": (8,), "max_iter": 30, "random_state": 0}


@pytest.mark.slow
@parametrize_with_checks([IllsRegressor((4,), max_iter=20)])
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def friedman():
    return make_friedman1(n_samples=400, n_features=6, random_state=0)


def test_learns_friedman1(friedman):
    x, y = friedman
    model = IllsRegressor((20,), random_state=0).fit(x[:300], y[:300])
    linear = Ridge().fit(x[:300], y[:300]).score(x[300:], y[300:])
    assert model.score(x[300:], y[300:]) > 0.99 > linear


def test_loss_curve_never_rises(friedman):
    model = IllsRegressor(**QUICK).fit(*friedman)
    assert len(model.loss_curve_) == model.n_iter_
    assert np.all(np.diff(model.loss_curve_) <= 0)
    assert model.loss_ == model.loss_curve_[-1]
    assert isinstance(model.code_, IllsCode)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(friedman, dtype):
    x, y = friedman
    model = IllsRegressor(**QUICK).fit(x.astype(dtype), y.astype(dtype))
    assert model.coefs_[0].dtype == dtype
    assert model.predict(x.astype(dtype)).dtype == dtype


def test_fitted_on_affine_data_predicts_affinely(friedman):
    """Standardised inside: units of inputs and targets do not matter."""
    x, y = friedman
    plain = IllsRegressor(**QUICK).fit(x, y).predict(x)
    moved = (
        IllsRegressor(**QUICK).fit(1e3 * x - 5e4, 1e-3 * y + 7).predict(1e3 * x - 5e4)
    )
    np.testing.assert_allclose((moved - 7) * 1e3, plain, atol=1e-4 * plain.std())


def test_early_stopping_keeps_the_best(friedman):
    x, y = friedman
    noisy = y + 2 * np.random.default_rng(0).normal(size=y.shape)
    options = {"hidden_layer_sizes": (60,), "max_iter": 200, "random_state": 0}
    stopped = IllsRegressor(early_stopping=True, **options).fit(x[:200], noisy[:200])
    full = IllsRegressor(alpha=0.0, tol=0.0, **options).fit(x[:200], noisy[:200])
    assert stopped.code_ == IllsCode.EARLY_STOPPED
    assert stopped.best_validation_score_ == max(stopped.validation_scores_)
    assert len(stopped.validation_scores_) == stopped.n_iter_
    assert stopped.score(x[200:], y[200:]) > full.score(x[200:], y[200:])


def test_two_outputs_and_two_layers(friedman):
    x, y = friedman
    both = np.stack([y, -3 * y + 1], axis=1)
    model = IllsRegressor((8, 6), max_iter=40, random_state=0).fit(x, both)
    assert model.predict(x).shape == both.shape
    assert [c.shape for c in model.coefs_] == [(6, 8), (8, 6), (6, 2)]
    assert (model.n_layers_, model.n_outputs_, model.out_activation_) == (
        4,
        2,
        "identity",
    )
    assert model.score(x, both) > 0.9


def test_warm_start_and_partial_fit_go_on(friedman):
    x, y = friedman
    model = IllsRegressor(**{**QUICK, "max_iter": 5}, warm_start=True).fit(x, y)
    first = model.loss_
    model.fit(x, y)
    assert model.loss_ < first
    assert len(model.loss_curve_) == 10
    second = model.loss_
    assert model.partial_fit(x, y).loss_ <= second
    assert model.n_iter_ == 1
    with pytest.raises(ValueError, match="`y` must have 1 columns"):
        model.partial_fit(x, np.stack([y, y], axis=1))


def test_partial_fit_from_nothing(friedman):
    x, y = friedman
    model = IllsRegressor(**QUICK)
    for _ in range(10):
        model.partial_fit(x, y)
    assert len(model.loss_curve_) == 10
    assert model.loss_ < model.loss_curve_[0]


def test_robust_losses_ignore_outliers(friedman):
    x, y = friedman
    rng = np.random.default_rng(0)
    hit = rng.uniform(size=y.shape) < 0.1
    dirty = np.where(hit, y + 50 * rng.choice([-1, 1], size=y.shape), y)

    def error(loss):
        model = IllsRegressor((10,), loss=loss, random_state=0, max_iter=100)
        return np.sqrt(np.mean((model.fit(x, dirty).predict(x) - y) ** 2))

    assert error("tukey") < 0.2 * error("squared")
    assert error("huber") < 0.5 * error("squared")


def test_composes_with_scikit_learn(friedman):
    x, y = friedman
    model = IllsRegressor((4,), max_iter=10, random_state=0)
    assert clone(model).get_params() == model.get_params()
    pipeline = make_pipeline(PolynomialFeatures(1, include_bias=False), model)
    assert cross_val_score(pipeline, x, y, cv=2).shape == (2,)
    search = GridSearchCV(model, {"alpha": [1e-4, 1e2]}, cv=2).fit(x, y)
    assert search.best_params_["alpha"] == 1e-4
    copy = pickle.loads(pickle.dumps(model.fit(x, y)))
    np.testing.assert_array_equal(copy.predict(x), model.predict(x))


def test_constant_feature_and_target():
    rng = np.random.default_rng(0)
    x = np.hstack([rng.normal(size=(50, 2)), np.full((50, 1), 1e6)])
    model = IllsRegressor(**QUICK).fit(x, np.full(50, 3.0))
    np.testing.assert_allclose(model.predict(x), 3.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_layer_sizes": (0,)}, "`hidden_layer_sizes` must be positive"),
        ({"activation": "nope"}, "'activation' parameter"),
        ({"alpha": -1.0}, "'alpha' parameter"),
        ({"loss": "nope"}, "'loss' parameter"),
        ({"activation": "relu", "method": "published"}, "no inverse"),
    ],
)
def test_bad_parameters(options, message):
    x, y = load_diabetes(return_X_y=True)
    with pytest.raises(ValueError, match=message):
        IllsRegressor(**options).fit(x[:30], y[:30])


@pytest.mark.parametrize(
    ("x", "y", "weights", "message"),
    [
        (np.full((5, 2), np.nan), np.ones(5), None, "contains NaN"),
        (np.ones((5, 2)), np.full(5, np.inf), None, "contains infinity"),
        (np.ones((0, 2)), np.ones(0), None, "0 sample"),
        (np.ones(5), np.ones(5), None, "Expected 2D array"),
        (np.ones((5, 2)), np.ones(4), None, "inconsistent numbers"),
        (np.ones((5, 2)), np.ones(5), np.zeros(5), "(?i)sample.weight"),
    ],
)
def test_bad_data(x, y, weights, message):
    with pytest.raises(ValueError, match=message):
        IllsRegressor(**QUICK).fit(x, y, weights)

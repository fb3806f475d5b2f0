"""The scikit-learn estimator."""

import pickle

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.linear_model import Ridge
from sklearn.metrics import d2_absolute_error_score, r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks

from linboost_optax import ills
from linboost_optax import sklearn as lbo_sklearn
from linboost_optax.ills import IllsCode
from linboost_optax.ills._model.activations import TABLE
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


def with_outliers(x, y):
    """A third of wild rows among the others, and weights of 0 for them."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(x) * 4 // 3)
    wild = len(order) - len(x)
    x = np.vstack([x, 9 * rng.normal(size=(wild, x.shape[1]))])[order]
    y = np.concatenate([y, 1e4 * rng.normal(size=wild)])[order]
    return x, y, np.where(order < len(order) - wild, 2.0, 0.0)


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_weight_zero_is_absence_from_what_is_held_out(friedman, loss):
    x, y, weights = with_outliers(*friedman)
    model = IllsRegressor((20,), loss=loss, early_stopping=True, random_state=0)
    there = clone(model).fit(x, y, sample_weight=weights)
    x_kept, y_kept = x[weights > 0], y[weights > 0]
    gone = model.fit(x_kept, y_kept)
    np.testing.assert_array_equal(there.predict(x), gone.predict(x))
    np.testing.assert_array_equal(there.validation_scores_, gone.validation_scores_)
    assert there.score(x, y, weights) == pytest.approx(gone.score(x_kept, y_kept))
    assert gone.score(x_kept, y_kept) > (0.99 if loss == "squared" else 0.9)


def held_out(x, y, weights):
    """The tenth that seed 0 holds out of the rows that count."""
    rows = np.flatnonzero(weights > 0)
    rows = train_test_split(rows, test_size=0.1, random_state=0)[1]
    return x[rows], y[rows], weights[rows]


@pytest.mark.parametrize(
    ("loss", "score"), [("squared", r2_score), ("huber", d2_absolute_error_score)]
)
def test_held_out_samples_count_as_they_weigh(friedman, monkeypatch, loss, score):
    """The best iterate is the one that is kept, and its score is scikit-learn's."""
    monkeypatch.setattr(lbo_sklearn, "_REFITS", 0)
    x, y = friedman
    y = y + 2 * np.random.default_rng(0).normal(size=y.shape)
    weights = np.random.default_rng(1).integers(0, 4, size=len(y)) ** 3.0
    model = IllsRegressor((20,), loss=loss, early_stopping=True, random_state=0)
    model.fit(x, y, sample_weight=weights)
    x_val, y_val, w_val = held_out(x, y, weights)
    want = score(y_val, model.predict(x_val), sample_weight=w_val)
    assert model.best_validation_score_ == pytest.approx(want, abs=1e-6)
    assert model.best_validation_score_ == max(model.validation_scores_)


def test_validation_score_of_two_targets_does_not_see_their_units(
    friedman, monkeypatch
):
    """Each target counts by its spread, about its own mean."""
    monkeypatch.setattr(lbo_sklearn, "_REFITS", 0)
    x, y = friedman
    noise = np.random.default_rng(0).normal(size=y.shape)
    both = np.stack([y, 1e3 * (x[:, 0] + noise) + 1e5], axis=1)
    weights = np.random.default_rng(1).uniform(size=len(y))
    model = IllsRegressor((20,), early_stopping=True, random_state=0)
    model.fit(x, both, sample_weight=weights)
    x_val, y_val, w_val = held_out(x, both, weights)
    mean = np.average(both, axis=0, weights=weights)
    spread = np.average((both - mean) ** 2, axis=0, weights=weights)
    left, all_of_it = (
        np.sum(np.average((y_val - guess) ** 2, axis=0, weights=w_val) / spread)
        for guess in (model.predict(x_val), np.average(y_val, axis=0, weights=w_val))
    )
    assert model.best_validation_score_ == pytest.approx(1 - left / all_of_it, abs=1e-6)


def test_what_was_held_out_is_trained_on_in_the_end(friedman):
    """The same by hand: stopped early, and then two iterations on all rows."""
    x, y = friedman
    y = y + np.random.default_rng(0).normal(size=y.shape)
    model = IllsRegressor((20,), early_stopping=True, random_state=0).fit(x, y)
    scaled = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    (x_fit, x_val, y_fit, y_val) = train_test_split(
        *scaled, test_size=0.1, random_state=0
    )
    with jax.enable_x64(True):
        params = model._draw(x_fit, y_fit[:, None], _after_the_split(len(x)))
        network = ills.network(params)
        stopped = ills.fit_ills(
            network, params, x_fit, y_fit, validation=(x_val, y_val)
        )
        want = ills.fit_ills(
            network, stopped.params, *scaled, state=stopped.state, max_iter=2
        )
        predicted = np.asarray(ills.predict(network, want.params, scaled[0]))[:, 0]
    assert model.n_iter_ == stopped.iterations
    np.testing.assert_allclose(
        model.predict(x), predicted * y.std() + y.mean(), rtol=1e-6
    )


def _after_the_split(rows):
    """The generator of seed 0 once it has drawn the rows that are held out."""
    rng = np.random.RandomState(0)
    train_test_split(np.arange(rows), test_size=0.1, random_state=rng)
    return rng


@pytest.mark.parametrize("loss", ["squared", "huber", "tukey"])
def test_weights_repeat_samples(friedman, loss):
    x, y = (a[:100] for a in friedman)
    y = np.where(np.arange(100) < 20, y + 5 * np.sin(40 * x[:, 0]), y)
    times = np.where(np.arange(100) < 20, 5, np.arange(100) % 3)
    model = IllsRegressor((5,), loss=loss, max_iter=10, tol=0.0, random_state=0)
    weighted = clone(model).fit(x, y, sample_weight=times)
    repeated = model.fit(np.repeat(x, times, axis=0), np.repeat(y, times))
    np.testing.assert_allclose(weighted.loss_curve_, repeated.loss_curve_, rtol=1e-6)
    np.testing.assert_allclose(weighted.predict(x), repeated.predict(x), rtol=1e-4)


def test_early_stopping_holds_for_a_single_iteration(friedman):
    model = IllsRegressor((4,), max_iter=1, early_stopping=True, random_state=0)
    assert len(model.fit(*friedman).validation_scores_) == 1


def test_partial_fit_holds_nothing_out(friedman):
    with pytest.raises(ValueError, match="`early_stopping` must be False for"):
        IllsRegressor((4,), early_stopping=True).partial_fit(*friedman)


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


@pytest.mark.parametrize("go_on", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"hidden_layer_sizes": (16,)},
            r"`hidden_layer_sizes` must stay \(8,\) .*, got \(16,\). Change it back",
        ),
        ({"hidden_layer_sizes": [8, 8]}, r"must stay \(8,\) .*, got \[8, 8\]"),
        ({"hidden_layer_sizes": 9}, "must stay .*, got 9"),
        (
            {"activation": "sigmoid"},
            "`activation` must stay 'tanh' .*, got 'sigmoid'. .* `warm_start=False`",
        ),
    ],
)
def test_another_network_cannot_go_on(friedman, go_on, changed, message):
    x, y = friedman
    model = IllsRegressor(**QUICK, warm_start=True).fit(x, y)
    before = model.predict(x)
    model.set_params(**changed)
    with pytest.raises(ValueError, match=message):
        getattr(model, go_on)(x, y)
    np.testing.assert_array_equal(model.predict(x), before)
    began = model.set_params(warm_start=False).fit(x, y)
    assert len(began.loss_curve_) == began.n_iter_


def test_the_same_network_in_other_words_goes_on(friedman):
    model = IllsRegressor(**QUICK, warm_start=True).fit(*friedman)
    model.set_params(hidden_layer_sizes=8, activation=TABLE["tanh"])
    assert len(model.fit(*friedman).loss_curve_) > model.n_iter_


def test_what_only_steers_the_fit_may_change(friedman):
    """A larger ridge is felt at once: the last layer is nearly taken away."""
    x, y = friedman
    model = IllsRegressor(**QUICK, warm_start=True).fit(x, y)
    assert np.std(model.predict(x)) > 0.9 * np.std(y)
    model.set_params(alpha=1e3, max_iter=5).fit(x, y)
    assert np.std(model.predict(x)) < 0.1 * np.std(y)


@pytest.mark.parametrize("go_on", ["fit", "partial_fit"])
def test_a_robust_scale_is_that_of_the_data_at_hand(friedman, go_on):
    x, y = friedman
    model = IllsRegressor(**QUICK, loss="huber", warm_start=True).fit(x, y)
    small = float(model._state.scale)
    noisy = y + 20 * np.random.default_rng(0).normal(size=y.shape)
    size = np.sort(np.abs(noisy - model.predict(x)) / y.std())
    start = 1.4826 * size[(len(size) - 1) // 2]
    getattr(model.set_params(max_iter=1), go_on)(x, noisy)
    assert start > 10 * small
    assert float(model._state.scale) == pytest.approx(start)


def test_another_activation_waits_for_the_fit(friedman):
    x, y = friedman
    model = IllsRegressor(**QUICK).fit(x, y)
    before = model.predict(x)
    np.testing.assert_array_equal(
        model.set_params(activation="relu").predict(x), before
    )


@pytest.mark.parametrize(
    ("first", "second"), [(np.float32, np.float64), (np.float64, np.float32)]
)
def test_going_on_is_in_the_precision_of_the_data(friedman, first, second):
    x, y = friedman
    model = IllsRegressor(**{**QUICK, "max_iter": 5}, warm_start=True)
    model.fit(x.astype(first), y).fit(x.astype(second), y)
    assert model.coefs_[0].dtype == second
    assert model.predict(x.astype(second)).dtype == second
    assert len(model.loss_curve_) == 10
    assert model.loss_ < model.loss_curve_[4]


def test_a_fit_that_fails_leaves_the_model(friedman):
    x, y = friedman
    model = IllsRegressor(**QUICK).fit(x, y)
    before = model.predict(x)
    model.set_params(activation="relu", method="published")
    with pytest.raises(ValueError, match="no inverse"):
        model.fit(5 + 10 * x, np.stack([y, y], axis=1))
    np.testing.assert_array_equal(model.predict(x), before)


def test_targets_far_from_zero_keep_their_digits(friedman):
    """In float32 the offset alone would take them: its spacing is 64."""
    x, y = friedman
    # Without a ridge runs that differ by rounding go ways of their own.
    model = IllsRegressor((20,), alpha=1e-4, random_state=0)
    plain = clone(model).fit(x.astype(np.float32), y)
    model.fit(x.astype(np.float32), y + 1e9)
    assert model.loss_ == pytest.approx(plain.loss_, rel=0.2)
    assert model.loss_ < 0.01


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
        ({"hidden_layer_sizes": (5.7,)}, r"must be positive integers, got \(5.7,\)"),
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
        (np.ones((5, 2)), np.ones(5), -np.ones(5), "`sample_weight` must be >= 0, got"),
        (np.ma.masked_less(np.eye(5), 1), np.ones(5), None, "`X` must have no masked"),
        (np.eye(5), np.ma.masked_less(np.arange(5), 2), None, "`y` must .*, got 2"),
    ],
)
def test_bad_data(x, y, weights, message):
    with pytest.raises(ValueError, match=message):
        IllsRegressor(**QUICK).fit(x, y, weights)

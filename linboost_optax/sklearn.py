"""A scikit-learn regressor trained by ILLS (the only file that imports sklearn)."""

import contextlib
import functools
import itertools
from numbers import Integral, Real
from typing import Any, ClassVar

import jax
import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin, _fit_context
from sklearn.dummy import DummyRegressor
from sklearn.metrics import mean_absolute_error, mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from linboost_optax.ills import Activation, fit_ills, network, predict
from linboost_optax.ills._model.activations import TABLE, get_activation
from linboost_optax.ills._model.initialization import scale_by_fan_in
from linboost_optax.ills._numerics.padding import pad_rows, padded_size
from linboost_optax.ills._scaling import Scaling
from linboost_optax.ills._steps.combine import COMBINES
from linboost_optax.ills._steps.importance import IMPORTANCES
from linboost_optax.ills._steps.losses import LOSSES
from linboost_optax.ills._steps.methods import METHODS

# Iterations at the end on all samples: what was held out is not lost. They lower test
# errors on noisy data and change little on others; five begin to fit the noise.
_REFITS = 2
# Predictions compile in a tenth of a second, so that padding has to be cheaper.
_LEAST_PREDICTED = 64


class IllsRegressor(RegressorMixin, BaseEstimator):
    r"""Regresses with a multi-layer perceptron that needs no learning rate.

    Parameters are named as ``sklearn.neural_network.MLPRegressor``'s. Inputs and
    targets are standardised inside; training is full batch, in float32 for float32
    inputs and in float64 otherwise.

    Args:
      hidden_layer_sizes: units of each hidden layer, default ``(50,)``.
      activation: of the hidden layers, a name of the table or an
        ``Activation``, default ``"tanh"``.
      method: ``"weighted"`` (default) or ``"published"``, see ``ills``.
      combine: ``"layer"`` (default), ``"unit"`` or ``"parameter"``.
      importance: ``"unit"`` (default) or ``"shared"``.
      loss: ``"squared"`` (default), ``"huber"`` or ``"tukey"`` for outliers.
      alpha: ridge on the output layer, on standardised data. Default 1e-6.
      hidden_alpha: ridge on the hidden layers. Default 0.
      batch_size: samples taken at a time, for memory only; default all.
      max_iter: default 300.
      tol: relative gain of the objective that counts, default 1e-4.
      n_iter_no_change: iterations without such a gain before it stops; default None is
        30 with early stopping, else 10.
      early_stopping: hold out a part of the samples of positive weight and keep the
        weights that are best on it, of up to three runs; two iterations on all samples
        end the fit (see ``fit_ills``). Default false.
      validation_fraction: share that is held out, default 0.1.
      random_state: of start weights and split. Default none.
      warm_start: continue from the fitted weights, with the standardisation of the
        first call. ``hidden_layer_sizes`` and ``activation`` must stay as they were,
        all other parameters may change. Default false.

    Attributes:
      coefs_: kernels, on standardised data, ``[input, unit]`` each.
      intercepts_: biases, ``[unit]`` each.
      loss_: last objective.
      loss_curve_: objective after every iteration; it never rises within a ``fit``.
      validation_scores_: share of the held-out loss that is explained, 1 - loss / loss
        of the best constant a target, or ``None``: R^2 on the standardised targets, or
        D^2 of the absolute error where the loss is robust.
      best_validation_score_: the best of these, or ``None``; of the weights before the
        iterations on all samples.
      n_iter_: iterations of the last ``fit``, those on all samples aside.
      code_: the ``IllsCode`` that ended it.
      n_layers_: layers, inputs included.
      n_outputs_: targets.
      out_activation_: ``"identity"``.

    Example:
      >>> from sklearn.datasets import load_diabetes
      >>> from linboost_optax.sklearn import IllsRegressor
      >>> x, y = load_diabetes(return_X_y=True)
      >>> model = IllsRegressor((10,), early_stopping=True, random_state=0).fit(x, y)
      >>> model.predict(x[:2]).shape
      (2,)

    References:
      Khadilkar (2023), arXiv:2307.05189; see ``linboost_optax.ills.ills``.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_layer_sizes": [
            "array-like",
            Interval(Integral, 1, None, closed="left"),
        ],
        "activation": [StrOptions(set(TABLE)), Activation],
        "method": [StrOptions(set(METHODS))],
        "combine": [StrOptions(set(COMBINES))],
        "importance": [StrOptions(set(IMPORTANCES))],
        "loss": [StrOptions(set(LOSSES))],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "hidden_alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [None, Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, 1, closed="left")],
        "n_iter_no_change": [None, Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
    }

    def __init__(
        self,
        hidden_layer_sizes=(50,),
        activation="tanh",
        *,
        method="weighted",
        combine="layer",
        importance="unit",
        loss="squared",
        alpha=1e-6,
        hidden_alpha=0.0,
        batch_size=None,
        max_iter=300,
        tol=1e-4,
        n_iter_no_change=None,
        early_stopping=False,
        validation_fraction=0.1,
        random_state=None,
        warm_start=False,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.method = method
        self.combine = combine
        self.importance = importance
        self.loss = loss
        self.alpha = alpha
        self.hidden_alpha = hidden_alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.warm_start = warm_start

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Trains on ``X`` ``[sample, feature]`` and ``y`` ``[sample]`` or 2-d.

        Args:
          X: inputs.
          y: targets.
          sample_weight: ``[sample]``, >= 0, default all 1. A sample counts by its
            weight in training and on held-out data; of weight 0 it is not there.

        Returns:
          The estimator.

        Raises:
          ValueError: if the data are empty, not finite, masked or mismatched, a
            parameter is out of its range or, with ``warm_start``, the fitted weights
            are of another network.
        """
        keep = self.warm_start and hasattr(self, "coefs_")
        return self._fit(X, y, sample_weight, self.max_iter, keep, self.early_stopping)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Trains for one more iteration on these data, from the fitted weights if any.

        The standardisation is that of the first call. As every iteration is a
        regression on the data it is given, small batches train worse than ``fit``.

        Args:
          X: inputs.
          y: targets.
          sample_weight: ``[sample]``, >= 0, default all 1.

        Returns:
          The estimator.

        Raises:
          ValueError: as ``fit`` with ``warm_start`` does, and for ``early_stopping``.
        """
        if self.early_stopping:
            raise ValueError(
                "`early_stopping` must be False for `partial_fit`, whose one iteration "
                "holds nothing out, got True. Change it by `set_params`, or use `fit`."
            )
        return self._fit(X, y, sample_weight, 1, hasattr(self, "coefs_"), False)

    def _fit(self, X, y, sample_weight, max_iter, keep, hold_out):
        for name, given in (("X", X), ("y", y), ("sample_weight", sample_weight)):
            _refuse_masked(name, given)
        checked: Any = validate_data(
            self,
            X,
            y,
            reset=not keep,
            multi_output=True,
            y_numeric=True,
            dtype=[np.float64, np.float32],
        )
        X, y = checked
        dtype = X.dtype
        weights = _check_weights(sample_weight, X)
        # What has no weight is left out, as if it had never been there: it must not
        # change which of the others are held out.
        counted = weights > 0
        X, targets, weights = X[counted], _columns(y)[counted], weights[counted]
        if keep:
            self._check_unchanged(targets.shape[1])
            scaling = self._scaling
        else:
            scaling = Scaling.of(X, targets, weights)
        rng = check_random_state(self.random_state)
        X, targets = scaling.inputs(X, dtype), scaling.targets(targets, dtype)
        with _precision(dtype):
            self._train(X, targets, weights, max_iter, keep, hold_out, rng)
        # Last, so that a fit that fails leaves the fitted model as it was.
        self._scaling, self._flat_target = scaling, y.ndim == 1
        return self

    def _check_unchanged(self, columns):
        """Raises where the fitted weights are not of the network asked for."""
        found = self._hidden_sizes()
        expected = [len(bias) for bias in self.intercepts_[:-1]]
        way_out = "Change it back, or begin anew by `fit` with `warm_start=False`."
        if found != expected:
            raise ValueError(
                f"`hidden_layer_sizes` must stay {tuple(expected)} to go on from the "
                f"fitted weights, got {self.hidden_layer_sizes}. {way_out}"
            )
        now, before = (
            get_activation(activation, "activation")
            for activation in (self.activation, self._activation)
        )
        if now != before:
            raise ValueError(
                f"`activation` must stay {before.name!r} to go on from the fitted "
                f"weights, got {now.name!r}. {way_out}"
            )
        if columns != self.n_outputs_:
            raise ValueError(
                f"`y` must have {self.n_outputs_} columns as before, got {columns}. "
                "Begin anew by `fit` with `warm_start=False`."
            )

    def _train(self, inputs, targets, weights, max_iter, keep, hold_out, rng):
        validation = None
        if hold_out:
            parts: Any = train_test_split(
                inputs,
                targets,
                weights,
                test_size=self.validation_fraction,
                random_state=rng,
            )
            inputs, x_val, targets, y_val, weights, w_val = parts
            validation = (x_val, y_val, w_val)
        dtype = inputs.dtype
        params = self._params(dtype) if keep else self._draw(inputs, targets, rng)
        result = fit_ills(
            network(params, self.activation),
            params,
            inputs,
            targets,
            sample_weight=weights,
            validation=validation,
            max_iter=max_iter,
            state=self._going_on(dtype) if keep else None,
            refit=_REFITS if hold_out else 0,
            tol=self.tol,
            patience=self.n_iter_no_change,
            method=self.method,
            combine=self.combine,
            importance=self.importance,
            loss=self.loss,
            output_ridge=self.alpha,
            hidden_ridge=self.hidden_alpha,
            chunk_size=self.batch_size,
        )
        self.coefs_ = [np.asarray(kernel) for kernel, _ in result.params]
        self.intercepts_ = [np.asarray(bias) for _, bias in result.params]
        # As NumPy arrays, so that an estimator pickles without devices.
        self._state = jax.tree.map(np.asarray, result.state)
        # What the weights were trained with, whatever the parameter says later.
        self._activation = self.activation
        self.code_ = result.code
        self.n_iter_ = result.iterations
        curve = result.objectives.tolist()
        self.loss_curve_ = [*self.loss_curve_, *curve] if keep else curve
        self.loss_ = self.loss_curve_[-1]
        self.validation_scores_ = self.best_validation_score_ = None
        if validation is not None:
            constant = _loss_of_a_constant(self.loss, *validation[1:])
            self.validation_scores_ = (1 - result.validation / constant).tolist()
            self.best_validation_score_ = max(self.validation_scores_)
        self.n_outputs_ = targets.shape[1]
        self.n_layers_ = len(self.coefs_) + 1
        self.out_activation_ = "identity"

    def predict(self, X):
        """Returns predictions ``[sample]``, or ``[sample, output]`` if ``y`` was 2-d.

        Args:
          X: inputs ``[sample, feature]``.

        Returns:
          Predictions, in the dtype the estimator was fitted in.
        """
        check_is_fitted(self)
        _refuse_masked("X", X)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        dtype = self.coefs_[0].dtype
        with _precision(dtype):
            params = self._params(dtype)
            inputs = self._scaling.inputs(X, dtype)
            padded = pad_rows(inputs, padded_size(len(inputs), _LEAST_PREDICTED))
            scaled = _predict(network(params, self._activation), params, padded)
        y = self._scaling.predictions(np.asarray(scaled)[: len(inputs)])
        return y[:, 0] if self._flat_target else y

    def _hidden_sizes(self) -> list[int]:
        sizes = np.atleast_1d(self.hidden_layer_sizes)
        whole = sizes.size == 0 or np.issubdtype(sizes.dtype, np.integer)
        if sizes.ndim != 1 or not whole or np.any(sizes < 1):
            raise ValueError(
                "`hidden_layer_sizes` must be positive integers, got "
                f"{self.hidden_layer_sizes}. Give the units of each hidden layer."
            )
        return sizes.astype(int).tolist()

    def _draw(self, inputs, targets, rng):
        sizes = [inputs.shape[1], *self._hidden_sizes(), targets.shape[1]]
        params = []
        for fan_in, units in itertools.pairwise(sizes):
            drawn = scale_by_fan_in(rng.normal(size=(fan_in + 1, units)), fan_in)
            drawn = drawn.astype(inputs.dtype)
            params.append((drawn[:-1], drawn[-1]))
        return params

    def _going_on(self, dtype):
        # A robust scale only shrinks in a run, but these data may be noisier.
        state = self._state._replace(scale=np.full((), np.inf))
        return jax.tree.map(_cast_to(dtype), state)

    def _params(self, dtype) -> list[Any]:
        return [
            (kernel.astype(dtype), bias.astype(dtype))
            for kernel, bias in zip(self.coefs_, self.intercepts_, strict=True)
        ]


@functools.partial(jax.jit, static_argnums=0)
def _predict(network, params, inputs):
    return predict(network, params, inputs)


def _columns(y):
    """Returns targets ``[sample, output]`` in floating point, their own where it is."""
    y = y.reshape(len(y), -1)
    return y if y.dtype in (np.float32, np.float64) else y.astype(np.float64)


def _check_weights(sample_weight, X):
    """Returns weights in [0, 1] and the dtype of ``X``, the largest 1."""
    weights: Any = _check_sample_weight(sample_weight, X, dtype=np.float64)
    if np.any(weights < 0):
        raise ValueError(
            f"`sample_weight` must be >= 0, got {weights.min()}. Negative values have "
            "no meaning in least squares; 0 leaves a sample out."
        )
    if not np.any(weights > 0):
        raise ValueError("`sample_weight` must be positive somewhere, got zeros.")
    return (weights / weights.max()).astype(X.dtype)


def _refuse_masked(name, given):
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise ValueError(
            f"`{name}` must have no masked values, got {np.ma.count_masked(given)}. "
            "They would be taken for data: leave their rows out, or impute them."
        )


def _loss_of_a_constant(loss, y, weights):
    """Returns the least held-out loss of a constant a column, which scores 0."""
    y = np.asarray(y, np.float64)
    squared = loss == "squared"
    best = DummyRegressor(strategy="mean" if squared else "median")
    constant: Any = best.fit(y, y, sample_weight=weights).predict(y)
    error = mean_squared_error if squared else mean_absolute_error
    least = error(y, constant.reshape(y.shape), sample_weight=weights)
    return max(float(least), np.finfo(np.float64).tiny)


def _cast_to(dtype):
    def cast(a):
        return a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a

    return cast


def _precision(dtype) -> contextlib.AbstractContextManager:
    """Computes in float64 for float64 data, whatever the global setting."""
    return jax.enable_x64(dtype == np.float64)

"""Diagnostics of ILLS against NumPy, and its plot."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

from linboost_optax import ills
from tests.ills import reference as ref

matplotlib.use("Agg")
RIDGE = 1e-5


def test_weighted_matches_numpy():
    with jax.enable_x64(True):
        params, x, y = ref.random_problem(0, (4, 6, 3))
        (layer,) = ills.ills_diagnostics(
            ills.network(params), params, x, y, ridge=RIDGE
        )
        layers = ref.augmented(params)
        omega = np.full(y.shape, 1 / y.size)
        (j,) = ref.output_jacobians(layers, x)
        inputs, zs = ref.forward(layers, x)
        size = np.abs(j)
        c = np.einsum("ik,ikj,ik->ij", omega, size, size.sum(axis=2))
        t = np.einsum("ikj,ik->ij", j, omega * (y - zs[-1])) / c
        (d,) = ref.weighted_directions(layers, x, y, omega, RIDGE)
        fit = inputs[0] @ d
        r2 = 1 - np.sum(c * (t - fit) ** 2, 0) / np.sum(c * t**2, 0)
        for got, want in (
            (layer.weights, c),
            (layer.ideal, zs[0] + t),
            (layer.fitted, zs[0] + fit),
            (layer.r2, r2),
        ):
            np.testing.assert_allclose(
                got, want, rtol=0, atol=1e-9 * np.abs(want).max()
            )
        wanted = np.tanh(zs[0]) + (1 - np.tanh(zs[0]) ** 2) * t
        np.testing.assert_allclose(layer.clipped, np.mean(np.abs(wanted) > 1, axis=0))


def test_condition_number_tells_collinear_inputs():
    x = jax.random.normal(jax.random.key(0), (60, 3))
    params = ills.init_mlp(jax.random.key(1), (3, 5, 1))
    net = ills.network(params)
    (good,) = ills.ills_diagnostics(net, params, x, x[:, 0])
    x = x.at[:, 1].set(x[:, 0] + 1e-3 * x[:, 2])
    (bad,) = ills.ills_diagnostics(net, params, x, x[:, 0])
    assert good.condition.max() < 1e3 < bad.condition.min()


def test_published_clips_what_cannot_be_reached():
    x = jax.random.normal(jax.random.key(0), (60, 3)) / 4
    params = ills.init_mlp(jax.random.key(1), (3, 5, 1))
    net = ills.network(params)
    near, far = (
        ills.ills_diagnostics(
            net, params, x, ills.predict(net, params, x) + shift, method="published"
        )[0]
        for shift in (1e-3, 100.0)
    )
    assert near.clipped.max() < 0.2
    assert far.clipped.mean() > 0.8
    np.testing.assert_allclose(near.ideal, near.pre_activations, atol=0.1)


def test_two_layers_and_a_dead_unit():
    x = jax.random.normal(jax.random.key(0), (60, 3))
    params = ills.init_mlp(jax.random.key(1), (3, 5, 4, 2))
    params[2] = (params[2][0].at[1].set(0.0), params[2][1])  # Nothing listens to it.
    y = jnp.stack([x[:, 0], x[:, 1] ** 2], axis=1)
    first, second = ills.ills_diagnostics(ills.network(params), params, x, y)
    assert (first.r2.shape, second.r2.shape) == ((5,), (4,))
    assert np.isnan(second.r2[1])
    assert np.isnan(second.condition[1])
    assert np.all(second.weights[:, 1] == 0)
    assert np.all((first.r2 > 0) & (first.r2 < 1))
    figure = ills.plot_ills([first, second])
    assert len(figure.axes) == 8
    assert figure.axes[0].get_title() == "0/0: R²"
    matplotlib.pyplot.close(figure)


def test_plot_needs_a_hidden_layer():
    with pytest.raises(ValueError, match="at least one hidden layer"):
        ills.plot_ills([])

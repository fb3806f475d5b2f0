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


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        # 1 - tanh(z)^2 is 0.071 at 2 and 0.045 at 2.25.
        ("tanh", [2 / 8, 1.0]),
        # s (1 - s) is 0.053 at 2.8 and 0.045 at 3.
        ("sigmoid", [1 / 8, 1.0]),
        ("relu", [1 / 8, 0.0]),
    ],
)
def test_saturated_is_the_share_of_flat_activations(activation, expected):
    """Units of one input: z = x, and z = 4 + x / 10; the second sample weighs 4."""
    x = jnp.asarray([[0.5], [2.0], [2.25], [3.0], [-0.1]])
    weights = jnp.asarray([1.0, 4.0, 1.0, 1.0, 1.0])
    params = [
        (jnp.asarray([[1.0, 0.1]]), jnp.asarray([0.0, 4.0])),
        (jnp.ones((2, 1)), jnp.zeros(1)),
    ]
    (layer,) = ills.ills_diagnostics(
        ills.network(params, activation), params, x, x[:, 0], sample_weight=weights
    )
    np.testing.assert_allclose(layer.saturated, expected, atol=1e-6)


def test_clipped_counts_samples_as_they_weigh():
    """As if each sample stood there as many times as its weight says."""
    x = jax.random.normal(jax.random.key(0), (60, 3))
    params = ills.init_mlp(jax.random.key(1), (3, 5, 4, 1))
    net, times = ills.network(params), np.arange(60) % 5
    y = 5 * x[:, 0] * x[:, 1]
    repeated = [jnp.repeat(a, times, axis=0) for a in (x, y)]
    for method in ("weighted", "published"):
        weighted = ills.ills_diagnostics(
            net, params, x, y, sample_weight=times, method=method
        )
        plain = ills.ills_diagnostics(net, params, *repeated, method=method)
        for got, want in zip(weighted, plain, strict=True):
            assert 0.01 < want.clipped.mean() < 0.99
            for name in ("clipped", "r2", "condition"):
                np.testing.assert_allclose(
                    getattr(got, name), getattr(want, name), rtol=1e-2
                )


def test_samples_without_weight_keep_their_pre_activations():
    x = jax.random.normal(jax.random.key(0), (60, 3))
    params = ills.init_mlp(jax.random.key(1), (3, 5, 1))
    weights = jnp.ones(60).at[7].set(0.0)
    (layer,) = ills.ills_diagnostics(
        ills.network(params), params, x, x[:, 0], sample_weight=weights
    )
    want = np.asarray(x)[7] @ np.asarray(params[0][0]) + np.asarray(params[0][1])
    np.testing.assert_allclose(layer.pre_activations[7], want, rtol=1e-5, atol=1e-6)
    assert np.all(layer.weights[7] == 0)


@pytest.mark.parametrize("known", [False, True])
def test_a_robust_loss_weighs_the_residuals(known):
    """By Huber's weights in the scale of the residuals, or of the state if smaller."""
    with jax.enable_x64(True):
        params, x, y = ref.random_problem(0, (4, 6, 1))
        y = jnp.asarray(y).at[:5].add(20.0)
        net = ills.network(params)
        state = ills.ills(net).init(params)._replace(scale=jnp.asarray(0.01))
        (layer,) = ills.ills_diagnostics(
            net, params, x, y, loss="huber", state=state if known else None
        )
        (plain,) = ills.ills_diagnostics(net, params, x, y)
        residual = np.abs(np.asarray(y - ills.predict(net, params, x)))
    middle = np.sort(residual.ravel())[(len(residual) - 1) // 2]
    scale = 0.01 if known else 1.4826 * middle
    huber = 1 / np.maximum(residual / scale, 1)
    np.testing.assert_allclose(layer.weights, huber * plain.weights, rtol=1e-8)


def test_hidden_ridge_and_shared_importance_are_in_the_regression():
    """One Gram matrix of the mean importance, and the ridge pulls the new weights."""
    rho = 0.3
    with jax.enable_x64(True):
        params, x, y = ref.random_problem(0, (4, 6, 3))
        options = {"ridge": RIDGE, "hidden_ridge": rho}
        net = ills.network(params)
        (unit,) = ills.ills_diagnostics(net, params, x, y, ridge=RIDGE)
        (ridged,) = ills.ills_diagnostics(net, params, x, y, **options)
        (shared,) = ills.ills_diagnostics(
            net, params, x, y, importance="shared", **options
        )
    a = np.hstack([x, np.ones((len(x), 1))])
    w = np.vstack([np.asarray(p) for p in params[0]])
    keep = np.diag([1.0] * 4 + [0.0])
    c, pull = unit.weights, unit.weights * (unit.ideal - unit.pre_activations)

    def fitted(weights, pull, j):
        gram = a.T @ (weights[:, None] * a)
        gram += RIDGE * np.mean(np.diag(gram)) * np.eye(5) + rho * keep
        step = np.linalg.solve(gram, a.T @ pull[:, j] - rho * keep @ w[:, j])
        return a @ (w[:, j] + step)

    share = c.sum(axis=0) / c.sum(axis=0).mean()
    for j in range(6):
        want = fitted(c[:, j], pull, j)
        np.testing.assert_allclose(ridged.fitted[:, j], want, rtol=0, atol=1e-9)
        want = fitted(c.mean(axis=1), pull / share, j)
        np.testing.assert_allclose(shared.fitted[:, j], want, rtol=0, atol=1e-9)
        np.testing.assert_allclose(shared.weights[:, j], c.mean(axis=1), rtol=1e-9)
    assert np.ptp(shared.condition) <= 1e-9 * shared.condition[0]


def test_plot_leaves_out_what_does_not_count():
    x = jax.random.normal(jax.random.key(0), (60, 3))
    params = ills.init_mlp(jax.random.key(1), (3, 5, 1))
    net, weights = ills.network(params), jnp.where(jnp.arange(60) < 20, 1.0, 0.0)
    drawn = []
    for data in ((x, x[:, 0], weights), (x[:20], x[:20, 0], None)):
        found = ills.ills_diagnostics(net, params, *data[:2], sample_weight=data[2])
        figure = ills.plot_ills(found)
        drawn.append([line.get_ydata() for line in figure.axes[3].lines])
        matplotlib.pyplot.close(figure)
    for got, want in zip(*drawn, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4)


def test_samples_cannot_be_spread():
    x = jax.random.normal(jax.random.key(0), (60, 3))
    params = ills.init_mlp(jax.random.key(1), (3, 5, 1))
    with pytest.raises(ValueError, match="`axis_name` must be None"):
        ills.ills_diagnostics(
            ills.network(params), params, x, x[:, 0], axis_name="data"
        )


def test_plot_needs_a_hidden_layer():
    with pytest.raises(ValueError, match="at least one hidden layer"):
        ills.plot_ills([])

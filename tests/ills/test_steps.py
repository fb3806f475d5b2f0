"""Every step of both ILLS methods against an independent NumPy implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linboost_optax import ills
from linboost_optax.ills._model.matrices import forward, read_matrices
from linboost_optax.ills._numerics.chunks import Batch
from linboost_optax.ills._options import resolve
from linboost_optax.ills._steps.problem import refit_output
from linboost_optax.ills._steps.sensitivity import (
    back_propagate,
    importances,
    jacobians,
)
from linboost_optax.ills._steps.subspace import best_steps
from linboost_optax.ills._steps.weighted import directions
from tests.ills import reference as ref

RIDGE, OUTPUT_RIDGE, DAMPING = 1e-5, 1e-3, 1e-2
SIZES = [(4, 6, 3), (3, 5, 4, 2), (3, 4, 5, 4, 1)]
JITTED = {
    directions: jax.jit(directions, static_argnums=1),
    best_steps: jax.jit(best_steps, static_argnums=1),
    refit_output: jax.jit(refit_output),
}
PROPOSE = jax.jit(lambda settings, *args: settings.method.propose(settings, *args))
WEIGHTS = ["uniform", "per sample", "per target"]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def weights_of(kind, shape, rng):
    n, k = shape
    if kind == "uniform":
        return np.full((n, 1), 1.0 / (n * k))
    w = rng.uniform(size=(n, 1 if kind == "per sample" else k))
    return w / np.broadcast_to(w, shape).sum()


def setup(sizes, kind, chunk_size=None, **options):
    params, x, y = ref.random_problem(0, sizes)
    w = weights_of(kind, y.shape, np.random.default_rng(1))
    settings = resolve(
        ills.network(params),
        ridge=RIDGE,
        output_ridge=OUTPUT_RIDGE,
        chunk_size=chunk_size,
        **options,
    )
    batch = Batch(jnp.asarray(x), jnp.asarray(y), jnp.asarray(w))
    matrices = [jnp.asarray(v) for v in ref.augmented(params)]
    omega = np.broadcast_to(w, y.shape)
    return settings, matrices, batch, (ref.augmented(params), x, y, omega)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=ref.F64 * np.abs(want).max())


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_step_1_directions(sizes, kind):
    settings, matrices, batch, reference = setup(sizes, kind)
    got = JITTED[directions](settings, settings.method.importance, matrices, batch)
    for direction, want in zip(
        got, ref.weighted_directions(*reference, RIDGE), strict=True
    ):
        close(direction, want)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("sizes", SIZES[:2], ids=str)
@pytest.mark.parametrize("span", ["layer", "unit"])
def test_step_2_combination(sizes, kind, span):
    settings, matrices, batch, reference = setup(sizes, kind, combine=span)
    rng = np.random.default_rng(2)
    groups = [[rng.normal(size=w.shape) for _ in range(2)] for w in matrices[:-1]]
    inputs, _ = ref.forward(reference[0], reference[1])
    columns = []
    for level, j in enumerate(ref.output_jacobians(reference[0], reference[1])):
        for direction in groups[level]:
            effect = j * (inputs[level] @ direction)[:, None, :]
            columns += (
                [effect.sum(axis=2)]
                if span == "layer"
                else [effect[:, :, unit] for unit in range(j.shape[2])]
            )
    alpha = ref.combination(
        *reference, np.stack(columns, axis=-1), DAMPING, OUTPUT_RIDGE
    )
    got = JITTED[best_steps](
        settings,
        settings.method.combine,
        matrices,
        [[jnp.asarray(d) for d in group] for group in groups],
        jnp.asarray(DAMPING),
        batch,
    )
    at = 0
    for step, group in zip(got, groups, strict=True):
        want = np.zeros(step.shape)
        for direction in group:
            width = direction.shape[1] if span == "unit" else 1
            want += alpha[at : at + width] * direction
            at += width
        close(step, want)


@pytest.mark.parametrize("sizes", [(4, 6, 3), (3, 5, 4, 2)], ids=str)
def test_step_2_over_all_parameters_is_levenberg_marquardt(sizes):
    settings, matrices, batch, reference = setup(
        sizes, "per sample", combine="parameter"
    )
    inputs, _ = ref.forward(reference[0], reference[1])
    blocks = [
        np.einsum("nkj,ni->nkij", j, inputs[level]).reshape(*j.shape[:2], -1)
        for level, j in enumerate(ref.output_jacobians(reference[0], reference[1]))
    ]
    alpha = ref.combination(
        *reference, np.concatenate(blocks, axis=-1), DAMPING, OUTPUT_RIDGE
    )
    got = JITTED[best_steps](
        settings,
        settings.method.combine,
        matrices,
        [[w] for w in matrices[:-1]],
        jnp.asarray(DAMPING),
        batch,
    )
    # Damped by 1e-2, so that the many nearly parallel columns stay well conditioned.
    close(np.concatenate([g.ravel() for g in got]), alpha)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("sizes", SIZES[:1], ids=str)
def test_step_3_refit(sizes, kind):
    settings, matrices, batch, reference = setup(sizes, kind)
    close(
        JITTED[refit_output](settings, matrices, 0.0, batch),
        ref.refit(*reference, OUTPUT_RIDGE),
    )


@pytest.mark.parametrize("relaxation", [1.0, 0.3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_published_iteration(sizes, relaxation):
    params, x, y = ref.random_problem(3, sizes, outputs_scale=0.3)
    margin = 1e-2
    settings = resolve(
        ills.network(params),
        method="published",
        ridge=RIDGE,
        output_ridge=0.0,
        margin=margin,
        relaxation=relaxation,
    )
    n, k = y.shape
    batch = Batch(jnp.asarray(x), jnp.asarray(y), jnp.full((n, 1), 1.0 / (n * k)))
    matrices = [jnp.asarray(v) for v in ref.augmented(params)]
    hidden = PROPOSE(settings, matrices, matrices, jnp.asarray(DAMPING), batch)
    last = JITTED[refit_output](settings, [*hidden, matrices[-1]], 0.0, batch)
    want = ref.published_iteration(
        ref.augmented(params), x, y, DAMPING, RIDGE, margin, relaxation
    )
    for got, expected in zip([*hidden, last], want, strict=True):
        close(got, expected)


def test_update_applies_the_three_steps():
    """An accepted update is step 1, 2, 3 in a row, nothing else."""
    sizes = (4, 6, 2)
    params, x, y = ref.random_problem(5, sizes)
    tx = ills.ills(ills.network(params), ridge=RIDGE, output_ridge=0.0)
    state = tx.init(params)._replace(count=jnp.int32(1))  # No refit beforehand.
    update = jax.jit(functools.partial(tx.update, None, inputs=x, targets=y))
    updates, state = update(state, params)
    assert bool(state.accepted)
    layers = ref.augmented(params)
    omega = np.full(y.shape, 1.0 / y.size)
    (direction,) = ref.weighted_directions(layers, x, y, omega, RIDGE)
    inputs, _ = ref.forward(layers, x)
    (jacobian,) = ref.output_jacobians(layers, x)
    effect = (jacobian * (inputs[0] @ direction)[:, None, :]).sum(axis=2)[:, :, None]
    (alpha,) = ref.combination(layers, x, y, omega, effect, DAMPING, 0.0)
    hidden = layers[0] + alpha * direction
    last = ref.refit([hidden, layers[1]], x, y, omega, 0.0)
    got = read_matrices(ills.network(params), updates)
    close(got[0] + layers[0], hidden)
    close(got[1] + layers[1], last)
    residual = y - ref.forward([hidden, last], x)[1][-1]
    close(state.objective, np.mean(residual**2))


@functools.cache
def one_update(method, chunk_size):
    params, x, y = ref.random_problem(7, (3, 5, 4, 2))
    network = ills.network(params)
    tx = ills.ills(network, method=method, chunk_size=chunk_size, loss="huber")
    update = jax.jit(functools.partial(tx.update, None, inputs=x, targets=y))
    state = tx.init(params)._replace(count=jnp.int32(1))
    updates, state = update(state, params)
    return updates, state.objective


@pytest.mark.parametrize(
    ("method", "chunk_size"),
    [("weighted", 1), ("weighted", 7), ("weighted", 60), ("published", 20)],
)
def test_chunks_change_nothing(chunk_size, method):
    jax.tree.map(close, one_update(method, chunk_size), one_update(method, None))


def test_shared_importance_keeps_right_hand_sides():
    """One Gram matrix, mean weights; every unit keeps its own scale."""
    settings, matrices, batch, (np_layers, x, y, omega) = setup(
        (4, 6, 3), "uniform", importance="shared"
    )
    inputs, zs = ref.forward(np_layers, x)
    (j,) = ref.output_jacobians(np_layers, x)
    size = np.abs(j)
    c = np.einsum("ik,ikj,ik->ij", omega, size, size.sum(axis=2))
    rhs = inputs[0].T @ np.einsum("ikj,ik->ij", j, omega * (y - zs[-1]))
    gram = (inputs[0] * c.mean(axis=1, keepdims=True)).T @ inputs[0]
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    share = c.sum(axis=0) / c.sum(axis=0).mean()
    shared = settings.method.importance
    (got,) = JITTED[directions](settings, shared, matrices, batch)
    close(got, np.linalg.solve(gram, rhs) / share)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_jacobians_against_autodiff(sizes):
    """Of the output by every pre-activation; weights c and J^T r follow from them."""
    settings, matrices, batch, (_, x, y, omega) = setup(sizes, "per target")
    network = settings.network
    f = forward(network, matrices, batch.inputs.T)
    js = jacobians(network, matrices, f)
    cs = importances(network, matrices, f, batch.weights.T)
    pulls = back_propagate(network, matrices, f, batch.targets.T)
    for level, (j, c, pull) in enumerate(zip(js, cs, pulls, strict=True)):

        def above(z, level=level):
            a = jnp.tanh(z)
            for w in matrices[level + 1 : -1]:
                a = jnp.tanh(jnp.append(a, 1.0) @ w)
            return jnp.append(a, 1.0) @ matrices[-1]

        z = (matrices[level].T @ f.inputs[level]).T
        want = jax.vmap(jax.jacobian(above))(z)  # [sample, output, unit]
        close(j.transpose(2, 0, 1), want)
        size = np.abs(want)
        close(c.T, np.einsum("ik,ikj,ik->ij", omega, size, size.sum(axis=2)))
        close(pull.T, np.einsum("ikj,ik->ij", want, y))


@pytest.mark.parametrize("outputs", [1, 3])
def test_predict_equals_the_internal_pass(outputs):
    """Two layouts, one function; with and without bias."""
    rng = np.random.default_rng(0)
    params = [
        (jnp.asarray(rng.normal(size=(4, 5))), jnp.asarray(rng.normal(size=5))),
        jnp.asarray(rng.normal(size=(5, 6))),
        {"kernel": jnp.asarray(rng.normal(size=(6, outputs)))},
    ]
    network = ills.network(params, "asinh", "sigmoid")
    x = jnp.asarray(rng.normal(size=(7, 4)))
    f = forward(network, read_matrices(network, params), x.T)
    close(jax.nn.sigmoid(f.out).T, ills.predict(network, params, x))
    assert [a.shape for a in f.inputs] == [(5, 7), (5, 7), (6, 7)]
    assert [a.shape for a in f.slopes] == [(5, 7), (6, 7)]

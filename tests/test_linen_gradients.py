"""Losses of every kind: mutable state, regularisers, penalties, several models."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.core import FrozenDict

import linboost_optax as lbo
from linboost_optax import linen
from tests.oracle import check, close, initial, normal, same_tree


class MLP(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.tanh(nn.Dense(self.width)(x)))


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


MODEL, X = MLP(), normal(0, 5, 3)


def loss_fn(params, x):
    return jnp.mean(jnp.square(MODEL.apply({"params": params}, x)))


def setting():
    return linen.taps(MODEL, X), initial(MODEL, X)["params"]


def test_batch_norm_and_dropout():
    model = Norm()
    variables = initial(model, X)
    state, params = variables["batch_stats"], variables["params"]

    def loss_fn(params, state, x, key):
        y, new = model.apply(
            {"params": params, "batch_stats": state},
            x,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return jnp.mean(jnp.square(y)), new

    taps = linen.taps(model, X)
    (_, new), _, _ = check(
        taps, loss_fn, params, state, X, jax.random.key(3), has_aux=True
    )
    assert set(new) == {"batch_stats"}
    reasons = {p.path: p.reason for p in taps.plain}
    assert reasons["BatchNorm_0/scale"].startswith("BatchNorm scales and shifts")


def test_parameters_as_variables():
    taps, params = setting()
    check(taps, lambda v, x: loss_fn(v["params"], x), {"params": params}, X)


def test_parameters_that_are_neither():
    taps, params = setting()
    with pytest.raises(
        ValueError, match=r"'Dense_0', which the parameters lack.*'params' collection"
    ):
        linen.value_and_grad(loss_fn, taps)({"model": params}, X)
    # The way out that it names.
    joined = lbo.Taps.join({"model": taps})
    function = linen.value_and_grad(lambda p, x: loss_fn(p["model"], x), joined)
    _, grads, stats = function({"model": params}, X)
    same_tree(grads["model"], jax.grad(loss_fn)(params, X))
    close(stats["model/Dense_1"].outer[0], X.T @ X, {"rtol": 1e-5, "atol": 1e-5})


def test_loss_with_a_cached_jit_inside():
    taps, params = setting()
    inner = jax.jit(lambda params, x: MODEL.apply({"params": params}, x))
    function = linen.value_and_grad(lambda p, x: jnp.sum(inner(p, x) ** 2), taps)
    first, second = function(params, X), function(params, X)
    assert first[2]["Dense_0"].count.tolist() == [5]
    same_tree(first, second)


def test_squared_norm_of_the_parameters_in_the_loss():
    taps, params = setting()

    def decayed(params, x):
        return loss_fn(params, x) + sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    check(taps, decayed, params, X)


def test_other_walks_over_the_parameters():
    taps, params = setting()
    anchor = jax.tree.map(jnp.ones_like, params)

    def anchored(params, x):
        plain = linen.without_taps(params)
        apart = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), plain, anchor)
        return loss_fn(params, x) + sum(jax.tree.leaves(apart))

    check(taps, anchored, params, X)


@pytest.mark.parametrize("per_example", [False, True])
def test_gradient_penalty(per_example):
    taps, params = setting()

    def penalised(params, x):
        score = lambda x: jnp.sum(jnp.sin(MODEL.apply({"params": params}, x)))  # noqa: E731
        slope = jax.vmap(jax.grad(score)) if per_example else jax.grad(score)
        return jnp.sum(jnp.square(slope(x)))

    want = jax.grad(penalised)(params, X)
    _, grads, stats = linen.value_and_grad(penalised, taps)(params, X)
    same_tree(grads, want)
    hidden = jnp.tanh(X @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None])
    for key, x in {"Dense_1": X, "Dense_0": hidden}.items():
        assert stats[key].count.tolist() == [5]
        close(stats[key].outer[0], x.T @ x, {"rtol": 1e-5, "atol": 1e-5})


@pytest.mark.parametrize("transform", ["jvp", "hessian"])
@pytest.mark.parametrize("jit", [True, False])
def test_forward_mode_is_refused(transform, jit):
    taps, params = setting()

    def forward(params, x):
        score = lambda x: jnp.sum(MODEL.apply({"params": params}, x))  # noqa: E731
        if transform == "jvp":
            return jax.jvp(score, (x,), (x,))[1]
        return jnp.sum(jax.hessian(score)(x))

    function = linen.value_and_grad(forward, taps)
    with pytest.raises(TypeError, match=r"forward mode .* Use jax\.grad"):
        (jax.jit(function) if jit else function)(params, X)


def test_other_type_errors_pass_through():
    taps, params = setting()
    with pytest.raises(TypeError, match="unsupported operand"):
        linen.value_and_grad(lambda p, x: x + "a", taps)(params, X)


@dataclass(frozen=True)
class Broken(lbo.extend.Statistic):
    def shapes(self, layer):
        return lbo.extend.struct(layer, 1)

    def measure(self, layer, x, g):
        raise TypeError("a fault in what is measured")

    def moments(self, layer, value):
        raise NotImplementedError


def test_an_error_of_a_statistic_is_not_taken_for_forward_mode():
    taps, params = linen.taps(MODEL, X, statistic=Broken()), setting()[1]
    with pytest.raises(TypeError, match="a fault in what is measured"):
        linen.value_and_grad(loss_fn, taps)(params, X)


@dataclass(frozen=True)
class Cotangents(lbo.extend.Statistic):
    """What comes back to a layer's output, summed over samples."""

    reads_cotangent = True

    def shapes(self, layer):
        return lbo.extend.struct(layer, layer.kind.outputs)

    def measure(self, layer, x, g):
        return jnp.sum(g.reshape(-1, layer.kind.outputs), axis=0)

    def moments(self, layer, value):
        raise NotImplementedError


class SameInput(nn.Module):
    @nn.compact
    def __call__(self, x):
        twice = nn.Dense(3, name="twice")
        return nn.Dense(4, name="once")(x), twice(x), 2 * twice(x)


def test_cotangents_of_layers_with_one_input_are_kept_apart():
    model, params = SameInput(), initial(SameInput(), X)["params"]
    taps = linen.taps(model, X, statistic=Cotangents())
    assert [layer.source for layer in taps.layers] == [None, None]
    assert "cotangents" in str(taps)

    def loss_fn(params, x):
        return sum(jnp.sum(y) for y in model.apply({"params": params}, x))

    _, _, stats = linen.value_and_grad(loss_fn, taps)(params, X)
    assert stats["once"].tolist() == [5] * 4
    assert stats["twice"].tolist() == [5 + 2 * 5] * 3


def test_forward_mode_without_taps():
    taps, params = setting()

    def mixed(params, x):
        plain = linen.without_taps(params)
        score = lambda x: jnp.sum(MODEL.apply({"params": plain}, x))  # noqa: E731
        return loss_fn(params, x) + jax.jvp(score, (x,), (x,))[1] ** 2

    want = jax.grad(mixed)(params, X)
    _, grads, stats = linen.value_and_grad(mixed, taps)(params, X)
    same_tree(grads, want)
    assert stats["Dense_0"].count.tolist() == [5]


def test_another_model_in_the_loss():
    taps, params = setting()
    other = MLP(7)
    frozen = initial(other, X)["params"]

    def distill(params, x):
        target = other.apply({"params": frozen}, x)
        return jnp.mean(jnp.square(MODEL.apply({"params": params}, x) - target))

    _, _, stats = linen.value_and_grad(distill, taps)(params, X)
    want = linen.value_and_grad(loss_fn, taps)(params, X)[2]
    same_tree(stats, want)


class Heads(nn.Module):
    def setup(self):
        self.trunk, self.left, self.right = nn.Dense(4), nn.Dense(2), nn.Dense(2)

    def __call__(self, x):
        x = self.trunk(x)
        return self.left(x), self.right(jnp.tanh(x))

    def one(self, x):
        return self.left(self.trunk(x))


def one_head(wrap=lambda f: f):
    model = Heads()
    apply = wrap(lambda p, x: model.apply({"params": p}, x, method="one"))
    loss = lambda p, x: jnp.sum(jnp.square(apply(p, x)))  # noqa: E731
    return linen.taps(model, X), loss, initial(model, X)["params"]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_unconnected_tap_is_an_error(wrap):
    taps, loss, params = one_head(wrap)
    with pytest.raises(ValueError, match=r"'right' has a tap .*allow_unconnected=True"):
        linen.value_and_grad(loss, taps)(params, X)


def test_several_unconnected_taps_are_named():
    taps, params = setting()
    with pytest.raises(ValueError, match=r"'Dense_0' .*\(and so \['Dense_1'\]\)"):
        linen.value_and_grad(lambda p, x: jnp.sum(x), taps)(params, X)


def test_unconnected_tap_on_purpose():
    taps, loss, params = one_head()
    _, grads, stats = check(taps, loss, params, X, allow_unconnected=True)
    assert stats["right"].count.tolist() == [0]
    assert not grads["right"]["kernel"].any()


def test_attend_after_taps_of_lookups_alone():
    model, tokens = nn.Embed(7, 3), jnp.array([1, 2])
    taps, params = linen.taps(model, tokens), initial(model, tokens)["params"]

    def tied(params, tokens):
        variables = {"params": params}
        x = model.apply(variables, tokens)
        return jnp.sum(model.apply(variables, x, method="attend"))

    with pytest.raises(
        ValueError,
        match=r"'\.': the loss multiplies its kernel with activations outside of",
    ):
        linen.value_and_grad(tied, taps)(params, tokens)


def test_layer_of_another_geometry():
    taps, _ = setting()
    wide = MLP()
    x = normal(0, 5, 6)
    params = initial(wide, x)["params"]
    with pytest.raises(ValueError, match=r"'Dense_1' with a kernel of shape"):
        linen.value_and_grad(loss_fn, taps)(params, x)


def test_taps_of_another_type():
    with pytest.raises(TypeError, match="`taps` must be a Taps, got dict"):
        linen.value_and_grad(loss_fn, {})  # type: ignore[arg-type]


def test_bfloat16():
    model = nn.Dense(2, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    x = X.astype(jnp.bfloat16)
    taps, params = linen.taps(model, x), initial(model, x)["params"]
    loss = lambda p, x: jnp.sum(model.apply({"params": p}, x))  # noqa: E731
    _, grads, stats = linen.value_and_grad(loss, taps)(params, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}


def test_float64():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (5, 3), jnp.float64)
        model = nn.Dense(2, param_dtype=jnp.float64)
        taps, params = linen.taps(model, x), initial(model, x)["params"]
        loss = lambda p, x: jnp.sum(jnp.square(model.apply({"params": p}, x)))  # noqa: E731
        _, _, stats = check(taps, loss, params, x)
        assert stats[""].outer.dtype == jnp.float64
        close(stats[""].outer[0], x.T @ x, {"rtol": 0, "atol": 1e-12})


def test_without_taps_keeps_other_trees():
    frozen = FrozenDict({"a": {"kernel": jnp.ones(2)}})
    assert isinstance(linen.without_taps(frozen), FrozenDict)
    assert linen.without_taps([1, 2]) == [1, 2]

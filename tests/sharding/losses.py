"""Losses that reach a layer in other ways than one call, over a mesh."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

import linboost_optax as lbo
from linboost_optax import linen
from tests.sharding.cases import Case, close
from tests.sharding.models import start

TOLERANCE = 1e-12  # float64 sums, not divided by the number of samples


def per_example(apply, x):
    return jnp.mean(jax.vmap(lambda each: jnp.sum(apply(each) ** 2))(x))


def rematerialised(apply, x):
    return jnp.mean(jax.checkpoint(apply)(x) ** 2)


def twice(apply, x):
    return jnp.mean(apply(x) ** 2) + jnp.mean(apply(2 * x) ** 2)


def gradient_penalty(apply, x):
    slope = jax.grad(lambda x: jnp.sum(apply(x) ** 2))(x)
    return jnp.sum(slope**2)


def looped(apply, x):
    def body(total, x):
        return total + jnp.mean(apply(x) ** 2), None

    return jax.lax.scan(body, jnp.zeros((), x.dtype), jnp.stack([x, 2 * x]))[0]


LOSSES = (per_example, rematerialised, twice, gradient_penalty, looped)


def same_over(place, collect, params, x):
    """Asserts that a function returns over a mesh what one device returns."""
    want = jax.jit(collect)(params, x)
    with place.context():
        got = jax.jit(collect)(*place.placed(params, x))
    close(got, want, TOLERANCE)


@dataclass(frozen=True)
class Shared:
    """One loss: value, gradients and statistics are those of one device."""

    loss: object
    place: Case

    def __str__(self):
        return f"{self.loss.__name__}; {self.place}"

    def __call__(self):
        model, params, x = start(self.place.model)
        taps = linen.taps(model, x, statistic=lbo.Sketch(3))

        def loss_fn(params, x):
            return self.loss(lambda x: model.apply({"params": params}, x), x)

        collect = linen.value_and_grad(loss_fn, taps)
        same_over(self.place, collect, params, x)


@dataclass(frozen=True)
class EachExample:
    """The statistics of each example, under `jax.vmap` over a sharded batch."""

    place: Case

    def __str__(self):
        return f"each example; {self.place}"

    def __call__(self):
        model, params, x = start(self.place.model)
        taps = linen.taps(model, x, statistic="gram")

        def loss_fn(params, x):
            return jnp.mean(model.apply({"params": params}, x) ** 2)

        collect = jax.vmap(linen.value_and_grad(loss_fn, taps), in_axes=(None, 0))
        same_over(self.place, collect, params, x)


@dataclass(frozen=True)
class ByHand:
    """`lbo.tap` in hand-written code."""

    mode: str

    def __str__(self):
        return f"lbo.tap; {self.mode}"

    def __call__(self):
        _, _, x = start("dense 3-d")
        place = Case("dense 3-d", "output", self.mode)
        taps = lbo.dense_taps({"layer": (6, 4)}, "gram", dtype=x.dtype)
        params = {"kernel": jnp.ones((6, 4), x.dtype)}

        def loss_fn(params, zeros, x):
            return jnp.mean((lbo.tap(x, zeros["layer"]) @ params["kernel"]) ** 2)

        collect = jax.jit(jax.grad(loss_fn, argnums=(0, 1)))
        want = collect(params, taps.zeros(), x)
        with place.context():
            params, x = place.placed(params, x)
            got = collect(params, taps.zeros(), x)
        close(got, want, TOLERANCE)

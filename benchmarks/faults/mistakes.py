"""Mistakes that a user makes, by name: each must raise, and say what to do instead.

A new one is a function of nothing under `@mistake`. What it raises is recorded as it
comes; that it raises at all is what is claimed, and what a test holds it to.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx, serialization
from flax.training.train_state import TrainState

import linboost_optax as lbo
from linboost_optax import linen

Mistake = Callable[[], Any]
MISTAKES: dict[str, Mistake] = {}


def mistake(name: str) -> Callable[[Mistake], Mistake]:
    """Adds a function to the list under what the user did wrong."""

    def add(function: Mistake) -> Mistake:
        MISTAKES[name] = function
        return function

    return add


class Network(nn.Module):
    """Two dense layers."""

    hidden: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.tanh(nn.Dense(self.hidden)(x))
        return nn.Dense(2)(x)


class Twice(nn.Module):
    """One dense layer, used twice."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = nn.Dense(x.shape[-1])
        return layer(nn.tanh(layer(x)))


class Parts(nn.Module):
    """Two dense layers; `encode` is the first alone."""

    def setup(self) -> None:
        self.first, self.second = nn.Dense(4), nn.Dense(2)

    def encode(self, x: jax.Array) -> jax.Array:
        return self.first(x)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nn.tanh(self.encode(x)))


@functools.cache
def right(statistic: Any = "auto", hidden: int = 4) -> SimpleNamespace:
    """A run without a mistake, up to its first update."""
    model, x = Network(hidden), jnp.linspace(-1, 1, 24).reshape(8, 3)
    variables = model.init(jax.random.key(0), x)
    params = variables["params"]
    taps = linen.taps(model, x, statistic=statistic)

    def loss_fn(params: Any, x: jax.Array) -> jax.Array:
        y: Any = model.apply({"params": params}, x)
        return jnp.mean(jnp.square(y))

    _, grads, stats = linen.value_and_grad(loss_fn, taps)(params, x)
    tx = lbo.lnb(0.1, taps)
    return SimpleNamespace(**locals())


# --- making taps ------------------------------------------------------------------


@mistake("`linen.taps(model)` without inputs")
def _() -> Any:
    return linen.taps(right().model)


@mistake("a shape in the inputs' place, `linen.taps(model, (32, 3))`")
def _() -> Any:
    return linen.taps(right().model, (32, 3))


@mistake("a class in the model's place, `linen.taps(Network, x)`")
def _() -> Any:
    return linen.taps(Network, right().x)  # pyright: ignore[reportArgumentType]


@mistake("an NNX model in `linen.taps`")
def _() -> Any:
    model: Any = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    return linen.taps(model, right().x)


@mistake('a name with a typo, `statistic="grams"`')
def _() -> Any:
    statistic: Any = "grams"
    return linen.taps(right().model, right().x, statistic=statistic)


@mistake("a class in the statistic's place, `statistic=lbo.Gram`")
def _() -> Any:
    statistic: Any = lbo.Gram
    return linen.taps(right().model, right().x, statistic=statistic)


@mistake("raw inputs of a layer that is used twice")
def _() -> Any:
    return linen.taps(Twice(), right().x, statistic="inputs")


@mistake("a model without linear layers")
def _() -> Any:
    return linen.taps(nn.LayerNorm(), right().x)


@mistake("a kernel with its axes swapped, as Equinox has it, in `dense_taps`")
def _() -> Any:
    taps = lbo.dense_taps({"hidden": (4, 3)})
    return lbo.tap(right().x, taps.zeros()["hidden"])


# --- gradients and statistics -----------------------------------------------------


@mistake("`linen.value_and_grad(loss_fn, taps, argnums=1)`")
def _() -> Any:
    function: Any = linen.value_and_grad
    return function(right().loss_fn, right().taps, argnums=1)


@mistake("forward mode in the loss")
def _() -> Any:
    run = right()

    def loss_fn(params: Any, x: jax.Array) -> jax.Array:
        network = functools.partial(run.model.apply, {"params": params})
        return jnp.sum(jax.jvp(network, (x,), (x,))[1])

    return linen.value_and_grad(loss_fn, run.taps)(run.params, run.x)


@mistake("a loss that leaves a tapped layer out")
def _() -> Any:
    model, x = Parts(), right().x
    params, taps = model.init(jax.random.key(0), x), linen.taps(model, x)

    def loss_fn(params: Any) -> jax.Array:
        y: Any = model.apply(params, x, method="encode")
        return jnp.sum(jnp.square(y))

    return linen.value_and_grad(loss_fn, taps)(params)


@mistake("taps of another model in `value_and_grad`")
def _() -> Any:
    other = right(hidden=5)
    return linen.value_and_grad(other.loss_fn, right().taps)(other.params, other.x)


@mistake("raw inputs of another batch size than the taps'")
def _() -> Any:
    run = right("inputs")
    return linen.value_and_grad(run.loss_fn, run.taps)(run.params, run.x[:5])


# --- making the optimizer ---------------------------------------------------------


@mistake("taps without a learning rate, `lbo.lnb(taps)`")
def _() -> Any:
    return lbo.lnb(right().taps)  # pyright: ignore[reportCallIssue]


@mistake("a negative learning rate, `lbo.lnb(-0.3, taps)`")
def _() -> Any:
    return lbo.lnb(-0.3, right().taps)


@mistake("a name in the solver's place")
def _() -> Any:
    solver: Any = "cholesky"
    return lbo.lnb(0.1, right().taps, solver)


@mistake("a class in the solver's place, `lbo.Cholesky`")
def _() -> Any:
    return lbo.lnb(0.1, right().taps, lbo.Cholesky)  # pyright: ignore


@mistake("a negative ridge")
def _() -> Any:
    return lbo.Cholesky(ridge=-0.1)


@mistake("conjugate gradients on a sketch")
def _() -> Any:
    return lbo.lnb(0.1, right("sketch").taps, lbo.ConjugateGradient())


@mistake("whitening with conjugate gradients")
def _() -> Any:
    solver = lbo.ConjugateGradient()
    return lbo.whiten(optax.adam(0.1), right("gram").taps, solver)


@mistake("a learning rate in the inner optimizer's place, `lbo.whiten(0.1, taps)`")
def _() -> Any:
    return lbo.whiten(0.1, right().taps)  # pyright: ignore[reportArgumentType]


@mistake("a schedule in a solver, `lbo.Cholesky(ridge=schedule)`")
def _() -> Any:
    schedule: Any = optax.linear_schedule(0.1, 0.0, 10)
    return lbo.Cholesky(ridge=schedule)


# --- updates ----------------------------------------------------------------------


@mistake("no statistics, `tx.update(grads, state, params)`")
def _() -> Any:
    run = right()
    return run.tx.update(run.grads, run.tx.init(run.params), run.params)


@mistake("`TrainState.apply_gradients(grads=grads, stats=stats)`")
def _() -> Any:
    run = right()
    state = TrainState.create(apply_fn=run.model.apply, params=run.params, tx=run.tx)
    return state.apply_gradients(grads=run.grads, stats=run.stats)


@mistake("statistics of another model")
def _() -> Any:
    run, other = right(), right(hidden=5)
    state = run.tx.init(run.params)
    return run.tx.update(run.grads, state, run.params, stats=other.stats)


@mistake("statistics of another kind than the optimizer's taps")
def _() -> Any:
    run, other = right(), right("moments")
    state = run.tx.init(run.params)
    return run.tx.update(run.grads, state, run.params, stats=other.stats)


@mistake("statistics of micro-batches stacked, not added up")
def _() -> Any:
    run = right()
    stats = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), run.stats)
    return run.tx.update(run.grads, run.tx.init(run.params), run.params, stats=stats)


@mistake("state made from `variables`, updated with `params`")
def _() -> Any:
    run = right()
    state = run.tx.init(run.variables)
    return run.tx.update(run.grads, state, run.params, stats=run.stats)


@mistake("parameters of another model in `init`")
def _() -> Any:
    return right().tx.init(right(hidden=5).params)


@mistake("a checkpoint restored into an optimizer of another statistic")
def _() -> Any:
    run, other = right("gram"), right("moments")
    saved = serialization.to_bytes(run.tx.init(run.params))
    state = serialization.from_bytes(other.tx.init(other.params), saved)
    return other.tx.update(other.grads, state, other.params, stats=other.stats)


@mistake("a state handed on to an optimizer of another statistic")
def _() -> Any:
    run, other = right("gram"), right("moments")
    state = run.tx.init(run.params)
    return other.tx.update(other.grads, state, other.params, stats=other.stats)


@mistake("a state of `lnb` in `whiten`")
def _() -> Any:
    run = right()
    tx = lbo.whiten(optax.adam(0.1), run.taps)
    return tx.update(run.grads, run.tx.init(run.params), run.params, stats=run.stats)


def try_mistake(name: str) -> dict[str, str | None]:
    """Makes a mistake; returns its error's type and first sentence, None without."""
    try:
        MISTAKES[name]()
    except Exception as error:
        return {
            "label": name,
            "error": type(error).__name__,
            "says": first_sentence(error),
        }
    return {"label": name, "error": None, "says": None}


def first_sentence(error: Exception) -> str:
    """The first sentence of an error's message, on one line."""
    text = " ".join(str(error).split())
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # another one every time
    # A full stop ends a sentence; a dot in `linen.taps` is followed by no space.
    sentence, stop, _ = text.partition(". ")
    return sentence + "." if stop else text

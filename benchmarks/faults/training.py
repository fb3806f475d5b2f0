"""One small run of training into which faults are put, compiled once a competitor.

The target has noise and a mean: a run that learns ends near the variance of the noise,
and one that learns nothing but the mean still has a loss that falls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import linboost_optax as lbo
from linboost_optax import linen

STEPS, ROWS, FEATURES, OUTPUTS = 200, 32, 12, 3
NOISE = 0.5  # standard deviation of the targets' noise


class Network(nn.Module):
    """A tanh network in one precision."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options = {"dtype": self.dtype, "param_dtype": self.dtype}
        x = nn.tanh(nn.Dense(16, **options)(x.astype(self.dtype)))
        return nn.Dense(OUTPUTS, **options)(x)


class Block(nn.Module):
    """A narrow layer, as a step of a scan."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return nn.tanh(nn.Dense(x.shape[-1])(x)), None


class Deep(nn.Module):
    """Many layers of 4 tanh units, scanned or one after the other."""

    depth: int
    scanned: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.tanh(nn.Dense(4)(x))
        if self.scanned:
            options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = nn.scan(Block, length=self.depth, **options)()(x, None)
        else:
            for _ in range(self.depth):
                x, _ = Block()(x, None)
        return nn.Dense(OUTPUTS)(x)


@dataclass(frozen=True)
class Competitor:
    """A statistic, and an optimizer of a schedule and taps; None: it has no taps."""

    label: str
    statistic: Any
    build: Callable[[optax.Schedule, Any], optax.GradientTransformation]
    peak: float  # of the learning rate


def _lnb(solver: Any) -> Callable[..., Any]:
    return lambda schedule, taps: lbo.lnb(schedule, taps, solver)


def _whiten(solver: Any) -> Callable[..., Any]:
    return lambda schedule, taps: lbo.whiten(optax.adam(schedule), taps, solver)


COMPETITORS = {
    "adam": Competitor("Adam", None, lambda schedule, _: optax.adam(schedule), 0.01),
    "lnb": Competitor("LNB", "auto", _lnb(lbo.Cholesky()), 0.3),
    "lnb_sketch": Competitor("sketch", lbo.Sketch(8), _lnb(lbo.Cholesky()), 0.3),
    "lnb_moments": Competitor(
        "incomplete Cholesky", "moments", _lnb(lbo.IncompleteCholesky()), 0.3
    ),
    "lnb_cg": Competitor(
        "conjugate gradients", "gram", _lnb(lbo.ConjugateGradient()), 0.3
    ),
    "whiten": Competitor("whiten(Adam)", "auto", _whiten(lbo.Cholesky()), 0.03),
    "whiten_moments": Competitor(
        "whiten, incomplete Cholesky",
        "moments",
        _whiten(lbo.IncompleteCholesky()),
        0.03,
    ),
}


class Batches(NamedTuple):
    """All batches of a run, ``[step, ...]``, and what is added to it on its way.

    What is added is zero, NaN or infinite.
    """

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray  # of every row in the loss
    loss: np.ndarray
    gradient: np.ndarray
    statistics: np.ndarray


class Run(NamedTuple):
    """What came of it.

    Attributes:
      losses: of every batch, ``[step]``.
      start: loss on all of the run's own batches before the first step.
      end: the same after the last step.
      final: loss on clean data after the last step.
      sound: whether parameters and state were finite after every step.
      carry: the last parameters and state.
    """

    losses: np.ndarray
    start: float
    end: float
    final: float
    sound: bool
    carry: Any


@dataclass(frozen=True)
class Setting:
    """What is compiled: sizes, precision and rate."""

    steps: int = STEPS
    rows: int = ROWS
    dtype: Any = jnp.float32
    rate: float = 1.0  # multiple of the competitor's learning rate
    model: nn.Module | None = None

    def network(self) -> nn.Module:
        """Returns the network that is trained."""
        return Network(self.dtype) if self.model is None else self.model


def batches(seed: int, setting: Setting = Setting()) -> Batches:
    """Clean batches: correlated inputs with a mean, targets with a mean and noise."""
    problem, rng = np.random.default_rng(0), np.random.default_rng([1, seed])
    mix = 0.5 * problem.normal(size=(FEATURES, FEATURES))
    slopes = 0.1 * problem.normal(size=(FEATURES, OUTPUTS))
    x = rng.normal(size=(setting.steps, setting.rows, FEATURES)) @ mix + 0.5
    y = 1 + np.sin(x @ slopes) + NOISE * rng.normal(size=(*x.shape[:2], OUTPUTS))
    nothing = np.zeros(setting.steps)
    found = (x, y, np.ones(x.shape[:2]), nothing, nothing, nothing)
    return Batches(*(np.asarray(array, np.float32) for array in found))


def run(
    competitor: Competitor,
    data: Batches,
    setting: Setting = Setting(),
    params: Any = None,
    seed: int = 0,
) -> Run:
    """Train on batches, faults and all; evaluate on clean data."""
    params = initial(setting, seed) if params is None else params
    clean = batches(1000 + seed, setting)
    carry, losses, sound = _trainer(competitor, setting)(params, data)
    start, end, final = (
        error(at, on, setting)
        for at, on in ((params, data), (carry[0], data), (carry[0], clean))
    )
    return Run(np.asarray(losses), start, end, final, bool(np.all(sound)), carry)


def stepper(
    competitor: Competitor,
    setting: Setting = Setting(),
) -> tuple[optax.GradientTransformationExtraArgs, Callable[..., Any]]:
    """The optimizer, and a step that maps `(params, state)` and one of the batches."""
    model = setting.network()
    x = jax.ShapeDtypeStruct((setting.rows, FEATURES), jnp.float32)
    taps = None
    if competitor.statistic is not None:
        taps = linen.taps(model, x, statistic=competitor.statistic)
    peak = setting.rate * competitor.peak
    schedule = optax.cosine_decay_schedule(peak, setting.steps)
    tx = optax.with_extra_args_support(competitor.build(schedule, taps))

    def step(carry: Any, batch: Batches) -> tuple[Any, jax.Array]:
        params, state = carry

        def loss_fn(params: Any) -> jax.Array:
            errors = _errors(model, params, batch.x, batch.y)
            # A row without weight must not poison the loss: that is another fault.
            errors = jnp.where(batch.weight > 0, errors, 0.0)
            return jnp.mean(errors) * (1.0 + batch.loss)

        if taps is None:
            loss, grads = jax.value_and_grad(loss_fn)(params)
            extra = {}
        else:
            loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
            extra = {"stats": _add(stats, batch.statistics)}
        grads = _add(grads, batch.gradient)
        updates, state = tx.update(grads, state, params, **extra)
        return (optax.apply_updates(params, updates), state), loss

    return tx, step


def initial(setting: Setting = Setting(), seed: int = 0) -> Any:
    """The parameters that training starts from."""
    x = jnp.zeros((setting.rows, FEATURES))
    return setting.network().init(jax.random.key(seed), x)["params"]


def error(params: Any, data: Batches, setting: Setting = Setting()) -> float:
    """The loss on all batches."""
    x, y = data.x.reshape(-1, FEATURES), data.y.reshape(-1, OUTPUTS)
    return float(jnp.mean(_errors(setting.network(), params, x, y)))


def finite(tree: Any) -> jax.Array:
    """Whether every number in a tree is finite, each looked at on its own."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype.kind not in "biu"]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


@functools.cache
def _trainer(competitor: Competitor, setting: Setting) -> Callable[..., Any]:
    tx, step = stepper(competitor, setting)

    def body(carry: Any, batch: Batches) -> Any:
        carry, loss = step(carry, batch)
        return carry, (loss, finite(carry))

    @jax.jit
    def train(params: Any, data: Batches) -> Any:
        carry, found = jax.lax.scan(body, (params, tx.init(params)), data)
        return carry, *found

    return train


@functools.partial(jax.jit, static_argnums=0)
def _errors(model: nn.Module, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean squared error of every row, in float32 whatever the network is in."""
    output: Any = model.apply({"params": params}, x)
    output = output.astype(jnp.float32)
    return jnp.mean(jnp.square(output - y), axis=-1)


def _add(tree: Any, number: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(number, leaf.dtype), tree)

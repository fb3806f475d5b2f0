"""One case: twenty steps over a mesh of four devices, against one device."""

import contextlib
import functools
import math
from dataclasses import dataclass, fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import linboost_optax as lbo
from linboost_optax import linen
from tests.sharding.models import LAYOUTS, start

STEPS = 20
if jax.config.jax_enable_x64:
    TOLERANCE = POLAR = 1e-9  # twenty steps of solves; 1e-14 apart as a rule
    GRADIENTS = 1e-14  # the same sums, over devices in another order
else:
    TOLERANCE, GRADIENTS = 1e-4, 1e-6
    # A momentum's shortest directions are lengthened, and their rounding errors.
    POLAR = 1e-3

OPTIMIZERS = {
    "cholesky": lambda taps: lbo.lnb(0.1, taps, lbo.Cholesky(every=2)),
    "incomplete": lambda taps: lbo.lnb(0.1, taps, lbo.IncompleteCholesky()),
    "cg": lambda taps: lbo.lnb(0.1, taps, lbo.ConjugateGradient()),
    "whiten": lambda taps: lbo.whiten(optax.adamw(0.01), taps, lbo.Cholesky(every=2)),
    "polar": lambda taps: lbo.polar(
        0.01, taps, lbo.Cholesky(every=2), weight_decay=0.1
    ),
    "accumulated": lambda taps: lbo.multi_steps(
        lbo.lnb(0.1, taps, lbo.Cholesky(every=2)), taps, 2
    ),
    "whiten, incomplete": lambda taps: lbo.whiten(
        optax.adamw(0.01), taps, lbo.IncompleteCholesky()
    ),
}
STATISTICS = {
    "gram": lbo.Gram(),
    "gram of some rows": lbo.Gram(max_samples=5),
    "sketch": lbo.Sketch(3),
    "sketch of some rows": lbo.Sketch(3, max_samples=5),
    "moments": lbo.Moments(),
    "inputs": lbo.Inputs(),
    "auto": lbo.Auto(),
}


@dataclass(frozen=True)
class Case:
    """What is trained, how it is sharded, and with which optimizer.

    Attributes:
      model: a key of `MODELS`.
      layout: a key of `LAYOUTS`.
      mode: "explicit" or "auto" axes; "arrays", where explicit axes come with the
        arrays alone; "eager", without `jit`; "wrapped", where the loss is a function
        of automatic axes on an explicit mesh, as Flax refuses some layouts otherwise.
      statistic: a key of `STATISTICS`.
      optimizer: a key of `OPTIMIZERS`.
      batch: mesh axis, or axes, that the batch is sharded over.
      shape: of the mesh; by default all four devices.
    """

    model: str
    layout: str
    mode: str
    statistic: str = "gram"
    optimizer: str = "cholesky"
    batch: str | tuple[str, ...] | None = "data"
    shape: tuple[int, int] = (2, 2)

    def __str__(self):
        return "; ".join(str(getattr(self, field.name)) for field in fields(self))

    def __call__(self):
        """Raises unless it trains as one device does, and is sharded as with Optax."""
        taps, tx, want = on_one_device(self.model, self.statistic, self.optimizer)
        model, params, x = start(self.model)
        loss = loss_of(model)
        if self.mode == "wrapped":
            loss = jax.sharding.auto_axes(loss, out_sharding=P())
        compiled = (lambda function: function) if self.mode == "eager" else jax.jit
        with self.context():
            params, x = self.placed(params, x)
            assert linen.taps(model, x, statistic=STATISTICS[self.statistic]) == taps
            adam = optax.adamw(0.01)
            plain = trained(compiled(step_of(loss, adam)), adam, params, x, steps=1)
            step = compiled(step_of(loss, tx, linen.value_and_grad(loss, taps)))
            got = trained(step, tx, params, x)
            first = trained(step, tx, params, x, steps=1)
        tolerance = POLAR if self.optimizer == "polar" else TOLERANCE
        close(got.params, want.params, tolerance)
        close(first.grads, plain.grads, GRADIENTS)
        jax.tree.map(same_sharding, got.params, plain.params)
        jax.tree.map(same_sharding, got.updates, plain.updates)
        if self.mode != "auto":  # where the compiler may lay out what is not pinned
            self.check_state(tx, params, got.state)

    def check_state(self, tx, params, state):
        """Raises unless a state lies where it was put, as `state_sharding` says."""
        told = lbo.state_sharding(tx, params)
        for leaf, first, sharding in zip(
            *map(jax.tree.leaves, (state, tx.init(params), told)), strict=True
        ):
            if leaf.ndim:  # numbers of steps are on every device, or on any
                assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
                same_sharding(leaf, first)

    @functools.cached_property
    def mesh(self):
        kind = AxisType.Auto if self.mode == "auto" else AxisType.Explicit
        some = jax.devices()[: math.prod(self.shape)]
        names = ("data", "model")
        return jax.make_mesh(self.shape, names, axis_types=(kind,) * 2, devices=some)

    def context(self):
        if self.mode == "arrays":
            return contextlib.nullcontext()
        return jax.set_mesh(self.mesh)

    def placed(self, params, x):
        """Returns parameters and batch on the mesh."""
        layout = LAYOUTS[self.layout]

        def put(leaf, spec):
            return jax.device_put(leaf, NamedSharding(self.mesh, spec))

        params = jax.tree.map(lambda leaf: put(leaf, layout(leaf.shape)), params)
        return params, put(x, P(self.batch))


@dataclass(frozen=True)
class Trained:
    """Parameters and state after the last step, and what it was made of."""

    params: object
    grads: object
    updates: object
    state: object = None


def loss_of(model):
    return lambda params, x: jnp.mean(model.apply({"params": params}, x) ** 2)


def step_of(loss, tx, collect=None):
    """Returns a step of training; `collect` returns loss, gradients and statistics."""

    def step(params, state, x):
        if collect is None:
            grads = jax.grad(loss)(params, x)
            updates, state = tx.update(grads, state, params)
        else:
            _, grads, stats = collect(params, x)
            updates, state = tx.update(grads, state, params, stats=stats)
        return Trained(optax.apply_updates(params, updates), grads, updates), state

    return step


def trained(step, tx, params, x, steps=STEPS):
    state = tx.init(params)
    for _ in range(steps):
        # Collectives of two steps at once may wait for each other's threads.
        last, state = jax.block_until_ready(step(params, state, x))
        params = last.params
    return replace(last, state=state)


jax.tree_util.register_dataclass(Trained)


@functools.cache
def on_one_device(name, statistic, optimizer):
    """Returns the taps, the optimizer, and what one device makes of them."""
    model, params, x = start(name)
    taps = linen.taps(model, x, statistic=STATISTICS[statistic])
    tx = OPTIMIZERS[optimizer](taps)
    loss = loss_of(model)
    step = jax.jit(step_of(loss, tx, linen.value_and_grad(loss, taps)))
    return taps, tx, trained(step, tx, params, x)


def same_sharding(a, b):
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (a.sharding, b.sharding)


def whole(leaf):
    """Returns an array that other processes have parts of as one that is here."""
    if leaf.is_fully_addressable:
        return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)


def close(got, want, tolerance):
    for a, b in zip(
        *(map(whole, jax.tree.leaves(t)) for t in (got, want)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

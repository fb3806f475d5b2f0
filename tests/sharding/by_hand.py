"""Losses over devices by `jax.shard_map` and `jax.pmap`, against one device."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from linboost_optax import linen
from tests.sharding.cases import (
    TOLERANCE,
    Case,
    close,
    loss_of,
    on_one_device,
    same_sharding,
    step_of,
    trained,
)
from tests.sharding.models import start


@dataclass(frozen=True)
class Mapped:
    """Training where the batch's mesh axis is manual.

    Attributes:
      model: a key of `MODELS`.
      layout: of the parameters, over the mesh axis that stays what it was.
      rest: type of the other mesh axis: "auto", "explicit", or "manual" as well.
      what: "step" or "loss", what is mapped over devices.
      check: whether JAX keeps account of what varies, and sums over devices itself.
      statistic: a key of `STATISTICS`.
      optimizer: a key of `OPTIMIZERS`.
    """

    model: str
    layout: str
    rest: str
    what: str
    check: bool
    statistic: str = "gram"
    optimizer: str = "cholesky"

    def __str__(self):
        return "shard_map; " + "; ".join(str(value) for value in vars(self).values())

    def __call__(self):
        taps, tx, want = on_one_device(self.model, self.statistic, self.optimizer)
        model, params, x = start(self.model)
        loss = loss_of(model)
        collect = linen.value_and_grad(lambda p, x: loss(p, x) / 2, taps)

        def over_devices(params, x):
            value, *sums = collect(params, x)
            return value, *(sums if self.check else jax.lax.psum(sums, "data"))

        def mapped(function, batch_at):
            specs = [P()] * (batch_at + 1)
            specs[batch_at] = P("data")
            return jax.shard_map(
                function,
                in_specs=tuple(specs),
                out_specs=P(),
                axis_names={"data", "model"} if self.rest == "manual" else {"data"},
                check_vma=self.check,
            )

        def without_value(params, x):
            return over_devices(params, x)[1:]

        if self.what == "loss":
            inner = mapped(without_value, 1)
            step = step_of(loss, tx, lambda params, x: (None, *inner(params, x)))
        else:
            step = mapped(step_of(loss, tx, over_devices), 2)
        place = Case(self.model, self.layout, self.rest)
        with place.context():
            params, x = place.placed(params, x)
            got = trained(jax.jit(step), tx, params, x)
        close(got.params, want.params, TOLERANCE)
        jax.tree.map(same_sharding, got.params, params)
        jax.tree.map(same_sharding, got.updates, params)


@dataclass(frozen=True)
class Pmapped:
    """Training under `jax.pmap`, statistics summed beside the mean of gradients."""

    model: str
    statistic: str

    def __str__(self):
        return f"pmap; {self.model}; {self.statistic}"

    def __call__(self):
        taps, tx, want = on_one_device(self.model, self.statistic, "cholesky")
        model, params, x = start(self.model)
        loss = loss_of(model)
        collect = linen.value_and_grad(loss, taps)

        def over_devices(params, x):
            value, grads, stats = collect(params, x)
            value, grads = jax.lax.pmean((value, grads), "i")
            return value, grads, jax.lax.psum(stats, "i")

        step = jax.pmap(
            step_of(loss, tx, over_devices),
            axis_name="i",
            in_axes=(None, None, 0),
            out_axes=None,
        )
        x = jnp.reshape(x, (4, -1, *x.shape[1:]))
        close(trained(step, tx, params, x).params, want.params, TOLERANCE)

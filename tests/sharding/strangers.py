"""Arrays on other devices than the gradients."""

from dataclasses import dataclass

import jax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from linboost_optax import linen
from tests.sharding.cases import loss_of, on_one_device
from tests.sharding.models import start


@dataclass(frozen=True)
class Strangers:
    """Statistics, or a state, on two of four devices, gradients on the other two.

    JAX itself refuses them as arguments of one compiled function.
    """

    what: str
    optimizer: str
    axes: AxisType

    def __str__(self):
        return f"strangers; {self.what}; {self.optimizer}; {self.axes.name}"

    def __call__(self):
        taps, tx, _ = on_one_device("dense", "gram", self.optimizer)
        model, params, x = start("dense")
        _, grads, stats = linen.value_and_grad(loss_of(model), taps)(params, x)

        def put(name, tree):
            some = jax.devices()[2:] if name == self.what else jax.devices()[:2]
            mesh = jax.make_mesh((2,), ("data",), axis_types=(self.axes,), devices=some)
            return jax.device_put(tree, NamedSharding(mesh, P()))

        grads, params = put("grads", grads), put("params", params)
        stats, state = put("stats", stats), put("state", tx.init(params))
        said = rf"`{self.what}` must be over the mesh .* devices \[2, 3\] .* \[0, 1\]"
        with pytest.raises(ValueError, match=said):
            tx.update(grads, state, params, stats=stats)

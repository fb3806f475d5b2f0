"""What was found out about a loss, and what is refused of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from linboost_optax._layer import Path
from linboost_optax._taps.table import Taps


class Place(NamedTuple):
    """A kernel in one call of a model.

    Attributes:
      call: number of the model call, in the order in which a loss makes them.
      path: where the kernel's branch is among the parameters of that call.
      name: of the kernel there.
    """

    call: int
    path: Path
    name: str


@dataclass(frozen=True)
class Plan:
    """What was found out about a loss.

    Attributes:
      layers: keys of the layers whose kernels arrive at each place.
      uses: how often each layer is used, loops unrolled.
      outside: layers whose kernel is contracted with data outside of its layer's call,
        and by which primitive.
      inputs: numbers of each layer's inputs: equal ones are the same array.
      mixed: layers that share a traced function with other kernels.
      hidden: layers that are called inside a function with a derivative of its own.
      repeated: keys of the statistics that are measured of one array more than once.
      entered: layers that a function with a derivative of its own in the model uses.
      nested: layers that are used inside what JAX traces: loops, branches, `jit`.
    """

    layers: Mapping[Place, frozenset[str]]
    uses: Mapping[str, int]
    outside: Mapping[str, str]
    inputs: Mapping[str, set[int]]
    mixed: frozenset[str]
    hidden: frozenset[str]
    repeated: frozenset[str]
    entered: frozenset[str]
    nested: frozenset[str]


def refuse_repeated(taps: Taps, plan: Plan) -> None:
    """Raises if a layer is used more than once whose statistic does not add up."""
    for layer in taps.layers:
        uses = plan.uses.get(layer.key, 0)
        if not layer.statistic.additive and uses > math.prod(layer.stack):
            raise ValueError(
                f"layer '{layer}' is used more than once, and `statistic` "
                f"'{layer.statistic.name}' cannot be added up (its inputs have shape "
                f"{layer.input_shape}). Use 'gram' or 'moments', which can."
            )


def refuse_unseen(plan: Plan) -> None:
    """Raises if a layer's statistic would not be what its metric needs."""
    for key in sorted(plan.hidden):
        raise ValueError(
            f"layer '{key or '.'}': the loss calls the model inside a function with a "
            "derivative of its own (jax.custom_vjp, jax.custom_jvp), which taps cannot "
            "enter. Wrap less than the model in it, or take its parameters from "
            "`linen.without_taps(params)` and leave the layer out of the taps."
        )
    for key in sorted(plan.mixed):
        raise ValueError(
            f"layer '{key or '.'}': the loss calls one transformed function (jax.jit, "
            "jax.checkpoint) with this layer's kernel and with another one, and JAX "
            "serves the second call from the first, tap and all. Call the model itself "
            "inside the loss and jit the whole step, or transform a function of its "
            "own for each: `jax.jit(lambda params, x: model.apply(params, x))`."
        )
    for key, primitive in sorted(plan.outside.items()):
        raise ValueError(
            f"layer '{key or '.'}': the loss multiplies its kernel with activations "
            f"outside of the layer's own call (by `{primitive}`), which the layer's "
            "statistic does not see. Leave the layer out, make optimizer and gradients "
            f"with `taps.filter(exclude={key!r})`; or take the kernel of that product "
            "from `linen.without_taps(params)` if the metric of its own call will do."
        )

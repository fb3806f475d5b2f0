"""How the state of an optimizer is sharded, before there is one."""

import functools
from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from linboost_optax._sharding import known_sharding


def state_sharding(tx: optax.GradientTransformation, params: optax.Params) -> Any:
    """Returns the shardings of an optimizer's state, from those of the parameters.

    Moments of parameters lie on the devices of these. What is kept of the inputs of a
    layer lies as its kernel does along the axes that they share: metrics of stacked
    layers that are sharded over the stack, and rows of sketches where the kernel's rows
    are sharded. All else is the same on every device.

    ``tx.init(params)`` outside of ``jax.jit`` places a state so by itself. This is for
    what is compiled or restored: the ``out_shardings`` of ``jax.jit(tx.init)``, or of a
    step whose mesh has automatic axes, and the target of a checkpoint.

    Args:
      tx: an optimizer, of this library or of Optax.
      params: a tree of arrays, or of ``jax.ShapeDtypeStruct``, sharded over one mesh;
        what has no sharding is the same on every device.

    Returns:
      A tree of ``jax.sharding.NamedSharding`` shaped like ``tx.init(params)``.

    Raises:
      ValueError: if no array is sharded over a mesh, or two are over different ones.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec as P
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(2), jnp.ones((8, 3))
      >>> tx = lbo.polar(1e-2, linen.taps(model, x))
      >>> params = model.init(jax.random.key(0), x)
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> params = jax.device_put(params, NamedSharding(mesh, P("data")))
      >>> shardings = lbo.state_sharding(tx, params)
      >>> state = jax.jit(tx.init, out_shardings=shardings)(params)
    """
    leaves = jax.tree.leaves(params)
    known = [each for each in map(known_sharding, leaves) if each is not None]
    meshes = list(dict.fromkeys(each.mesh for each in known))
    if len(meshes) != 1:
        got = "over none" if not meshes else f"over {meshes}"
        raise ValueError(
            f"`params` must be sharded over one mesh, got arrays {got}. Put them there "
            "first, e.g. jax.device_put(params, NamedSharding(mesh, PartitionSpec()))."
        )
    (mesh,) = meshes
    # Types of explicit axes carry shardings through `init`, whatever it is made of.
    typed = mesh.abstract_mesh.update_axis_types(
        dict.fromkeys(mesh.axis_names, AxisType.Explicit)
    )

    def stand_in(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = _over(typed, leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with jax.sharding.use_abstract_mesh(typed):
        state = jax.eval_shape(tx.init, jax.tree.map(stand_in, params))
    return jax.tree.map(functools.partial(_over, mesh), state)


def _over(mesh: Any, leaf: Any) -> NamedSharding:
    """Returns a leaf's sharding over another mesh of the same axes."""
    own = known_sharding(leaf)
    return NamedSharding(mesh, PartitionSpec() if own is None else own.spec)

"""What is said of arrays over two meshes, where an update fails of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from linboost_optax._sharding import known_sharding


def strangers(updates: Any, stats: Any, state: Any) -> str | None:
    """Returns what is over another mesh than the gradients, and the way out, or None.

    Types tell of meshes with explicit axes while a step is traced, and arrays of any
    mesh where it is not. Automatic axes of one mesh do not contradict those of another
    on the same devices: JAX takes both.

    Args:
      updates: the gradients.
      stats: used beside them.
      state: likewise.
    """
    own = next(_meshes(updates), None)
    if own is None:
        return None
    for name, tree in (("stats", stats), ("state", state)):
        got = next((mesh for mesh in _meshes(tree) if _differ(own, mesh)), None)
        if got is not None:
            own, got = _text(own), _text(got)
            way_out = _WAYS_OUT[name]
            return _MESSAGE.format(name=name, own=own, got=got, way_out=way_out)
    return None


def _meshes(tree: Any) -> Iterator[Mesh | AbstractMesh]:
    """Yields the meshes that arrays are over, as far as that is known by now."""
    for leaf in jax.tree.leaves(tree):
        sharding = known_sharding(leaf)
        mesh = jax.typeof(leaf).sharding.mesh if sharding is None else sharding.mesh
        if not mesh.empty:
            yield mesh


def _differ(a: Mesh | AbstractMesh, b: Mesh | AbstractMesh) -> bool:
    ids = [set(m.devices.flat) for m in (a, b) if isinstance(m, Mesh)]
    if len(ids) == 2 and ids[0] != ids[1]:
        return True
    # What there is to a type is abstract.
    first, second = (m.abstract_mesh if isinstance(m, Mesh) else m for m in (a, b))
    return first != second and bool(first.explicit_axes or second.explicit_axes)


def _text(mesh: Mesh | AbstractMesh) -> str:
    axes = ", ".join(
        f"'{name}': {size} ({kind.name.lower()})"
        for (name, size), kind in zip(mesh.shape.items(), mesh.axis_types)
    )
    if not isinstance(mesh, Mesh):
        return f"{{{axes}}}"
    return f"{{{axes}}} on devices {[each.id for each in mesh.devices.flat]}"


_MESSAGE = (
    "`{name}` must be over the mesh that the gradients are over, got arrays over {got} "
    "beside gradients over {own}. {way_out}."
)
_WAYS_OUT = {
    "stats": "Collect both in one call of `value_and_grad`, or move the statistics: "
    "jax.device_put(stats, NamedSharding(mesh, PartitionSpec()))",
    "state": "Move it: jax.device_put(state, lbo.state_sharding(tx, params))",
}

"""Arrays that are sharded over a mesh.

With ``Explicit`` axes their sharding is part of their type, and JAX refuses what it
cannot type: a reshape that merges a sharded axis, a product over one. Statistics and
solvers are full of both. They run with these axes as ``Auto`` ones, where the compiler
lays out what is in between, and say only what comes out. Without a mesh nothing here
does anything.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.core import Tracer
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

_Out = TypeVar("_Out")


def replicated(function: Callable[..., _Out], *args: Any) -> _Out:
    """Returns ``function(*args)``, the same on every device of an explicit mesh."""
    mesh = _explicit_mesh(args)
    if mesh is None:
        return function(*args)
    return _automatic(function, mesh, NamedSharding(mesh, PartitionSpec()), args)


def sharded_like(like: Any, function: Callable[..., _Out], *args: Any) -> _Out:
    """Returns ``function(*args)``, sharded as ``like``.

    Args:
      like: a tree of arrays.
      function: returns such a tree.
      *args: its arguments.
    """
    mesh = _explicit_mesh((like, args))
    if mesh is None:
        return function(*args)

    def sharding_of(leaf: jax.Array) -> NamedSharding:
        own = jax.typeof(leaf).sharding
        return NamedSharding(mesh, PartitionSpec() if own.mesh.empty else own.spec)

    return _automatic(function, mesh, jax.tree.map(sharding_of, like), args)


def rows_whole(x: jax.Array) -> jax.Array:
    """Asks the compiler to have the whole of each row of ``x`` on one device."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty or len(mesh.auto_axes) < len(mesh.axis_names):
        return x
    spec = PartitionSpec(*[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1), None)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def first_axis(tree: Any) -> Any:
    """Returns the mesh axes that the first axis of square matrices is sharded over.

    Of arrays ``[block, n, n]`` the first that types tell it of; None for none.
    """
    for leaf in jax.tree.leaves(tree):
        if leaf.ndim == 3 and leaf.shape[1] == leaf.shape[2]:
            spec = jax.typeof(leaf).sharding.spec
            if spec[0] is not None:
                return spec[0]
    return None


def along_first(x: jax.Array, names: Any) -> jax.Array:
    """Asks the compiler to divide the first axis of ``x`` over these automatic axes."""
    if names is None:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(names))


def known_sharding(x: Any) -> NamedSharding | None:
    """Returns how an array is sharded over a mesh, where that is known by now.

    It is of arrays that are there, of shapes that come with one, and of explicit axes
    by their type. What is traced for automatic ones is laid out by the compiler.
    """
    if not isinstance(x, Tracer):
        own = getattr(x, "sharding", None)
        return own if isinstance(own, NamedSharding) else None
    own = jax.typeof(x).sharding
    return own if own.mesh.explicit_axes else None


def put(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Returns an array with a sharding that ``known_sharding`` told of another."""
    if isinstance(sharding.mesh, AbstractMesh):
        return jax.sharding.reshard(x, sharding)
    return jax.device_put(x, sharding)


def everywhere(tree: _Out, beside: Any) -> _Out:
    """Returns arrays on every device of the mesh of others, where that is known."""
    shardings = map(known_sharding, jax.tree.leaves(beside))
    sharding = next((each for each in shardings if each is not None), None)
    if sharding is None:
        return tree
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: put(leaf, whole), tree)


def unsharded(x: Any) -> Any:
    """Returns an array's shape where it is sharded over explicit axes, else ``x``."""
    if not isinstance(x, jax.Array | jax.ShapeDtypeStruct):
        return x
    kind = jax.typeof(x)
    if not kind.sharding.mesh.explicit_axes:
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=kind.weak_type)


def _automatic(
    function: Callable[..., _Out], mesh: AbstractMesh, out: Any, args: tuple
) -> _Out:
    automatic: Any = jax.sharding.auto_axes(
        function, axes=mesh.explicit_axes, out_sharding=out
    )
    return automatic(*args)


def _explicit_mesh(tree: Any) -> AbstractMesh | None:
    """Returns the mesh that arrays are sharded over, if it has explicit axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:  # arrays may bring theirs into `jit`
        types = (jax.typeof(leaf).sharding for leaf in jax.tree.leaves(tree))
        mesh = next((each.mesh for each in types if not each.mesh.empty), mesh)
    return mesh if mesh.explicit_axes else None


def here(tree: _Out) -> _Out:
    """Returns arrays that are closed over as arrays of the mesh in this place.

    A function may run with other types of axes than what calls it (``auto_axes``), and
    JAX translates its arguments alone.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def translated(leaf: jax.Array) -> jax.Array:
        own = jax.typeof(leaf).sharding.mesh
        if mesh.empty or own.empty or own == mesh:
            return leaf
        return jax.sharding.reshard(leaf, PartitionSpec())

    return jax.tree.map(translated, tree)

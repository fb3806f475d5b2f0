"""Which equations multiply a kernel with data, and what linear map that is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax._arrangement import Atom, Axes, Axis, size_of
from linboost_optax._kinds import Conv, Dense, Embed, Experts, Kind, experts


@dataclass(frozen=True)
class Access:
    """How an operand of an equation becomes the input of a kind.

    Attributes:
      operand: which of the equation's.
      order: of its axes; None for indices.
      groups: which operand tells how many samples go to each expert, or None.
      rows: of indices, how many rows there are to look up; whether an index beyond
        them is that of the nearest, else it is that of none; and which part of an index
        that is, or None for all of it.
    """

    operand: int
    order: tuple[int, ...] | None
    groups: int | None = None
    rows: tuple[int, bool, int | None] | None = None

    def apply(self, row: Sequence[jax.Array]) -> jax.Array:
        """Returns the input, from the operands."""
        x = row[self.operand]
        if self.groups is not None:
            return experts.numbered(x, row[self.groups])
        if self.rows is None:
            return x if self.order is None else x.transpose(self.order)
        count, clipped, part = self.rows
        x = x if part is None else x[..., part]
        if clipped:
            return jnp.clip(x, 0, count - 1)
        return jnp.where((x < 0) | (x >= count), count, x)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the input, from that of the operand."""
        if self.order is None:
            whole = self.rows is not None and self.rows[2] is None
            return shape if whole else shape[:-1]
        shape = tuple(shape[i] for i in self.order)
        return shape if self.groups is None else (*shape[:-1], shape[-1] + 1)

    def number(self, row: Sequence[Any]) -> Hashable:
        """Returns the number of the input, from what is known of the operands."""
        groups = None if self.groups is None else row[self.groups].number
        return (row[self.operand].number, self.order, groups)


@dataclass(frozen=True)
class Contraction:
    """An equation as a layer: what is linear in what, and along which axes.

    Attributes:
      kind: of the layer.
      kernel: atoms of the kernel, in the kind's order.
      input: how the other operand becomes the layer's input.
      output: order of the result's axes that makes it the layer's output: blocks,
        samples, outputs.
      outputs: what each of the result's axes is among those of the kind's bias.
      part_axis: axis of the result that an axis of the kernel has become, by that.
    """

    kind: Kind
    kernel: tuple[Atom, ...]
    input: Access
    output: tuple[int, ...]
    outputs: Axes
    part_axis: dict[int, int]


def read(eqn: Any, which: int, axes: Axes) -> Contraction | str | None:
    """Reads an equation as a layer.

    Args:
      eqn: of a traced function.
      which: the operand that is a kernel.
      axes: what the operand's axes are among those of the parameter.

    Returns:
      The layer; why it is none; None for equations that contract nothing.
    """
    reader = _READERS.get(eqn.primitive.name)
    return None if reader is None else reader(eqn, which, axes)


def _dot(eqn: Any, which: int, axes: Axes) -> Contraction | str:
    contract, batch = eqn.params["dimension_numbers"]
    other = 1 - which
    shape = eqn.invars[other].aval.shape
    pairs = list(zip(batch[which], batch[other]))
    contracted = dict(zip(contract[which], contract[other]))
    free = [i for i in range(len(axes)) if i not in (*batch[which], *contracted)]
    if any(_mixed(axis) for axis in axes):
        return "its axes are merged with those of a batch"
    if any(_repeats(axes[i]) for i in (*contracted, *free)):
        return "it is repeated along an axis that is no batch"
    if not contracted:
        return "it is multiplied element by element"
    blocks = sorted((i for i, _ in pairs if _known(axes[i])), key=_place(axes))
    inputs = sorted(contracted, key=_place(axes))
    outs = sorted(free, key=_place(axes))
    block_of = dict(pairs)
    x_blocks = [block_of[i] for i in blocks]
    x_inputs = [contracted[i] for i in inputs]
    samples = [i for i in range(len(shape)) if i not in (*x_blocks, *x_inputs)]

    # The result: batch axes, then what is left of the left, then of the right.
    x_batch = list(batch[other])
    x_free = [i for i in range(len(shape)) if i not in (*x_batch, *contract[other])]
    first, second = (free, x_free) if which == 0 else (x_free, free)
    place_x = {axis: i for i, axis in enumerate(x_batch)}
    place_own = {axis: i for i, axis in enumerate(batch[which])}
    for mine, start, rest in (
        (which == 0, len(x_batch), first),
        (which == 1, len(x_batch) + len(first), second),
    ):
        places = place_own if mine else place_x
        places.update({axis: start + i for i, axis in enumerate(rest)})

    def sizes(of: Sequence[int]) -> tuple[int, ...]:
        return tuple(size_of(axes[i]) for i in of)

    bias = [*blocks, *outs]
    rank = len(eqn.outvars[0].aval.shape)
    return Contraction(
        kind=Dense(
            sizes(blocks), sizes(inputs), sizes(outs), tuple(range(-len(inputs), 0))
        ),
        kernel=_atoms(axes, [*blocks, *inputs, *outs]),
        input=Access(other, (*x_blocks, *samples, *x_inputs)),
        output=(
            *(place_own[i] for i in blocks),
            *(place_x[i] for i in samples),
            *(place_own[i] for i in outs),
        ),
        outputs=_outputs(eqn, {place_own[i]: k for k, i in enumerate(bias)}, rank),
        part_axis={i: place_own[i] for i in outs},
    )


def _conv(eqn: Any, which: int, axes: Axes) -> Contraction | str:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    if which != 1:
        return "it is convolved as an image"
    if params["batch_group_count"] != 1:
        return "it is convolved in groups of the batch"
    if any(_repeats(axis) or _mixed(axis) for axis in axes):
        return "it is repeated, once an example"
    x, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    lhs, rhs, result = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    kernel = (*rhs[2:], rhs[1], rhs[0])
    sizes = eqn.invars[1].aval.shape
    kind = Conv(
        window=tuple(sizes[i] for i in rhs[2:]),
        in_channels=x[lhs[1]],
        out_channels=size_of(axes[rhs[0]]),
        strides=tuple(params["window_strides"]),
        padding=tuple((int(low), int(high)) for low, high in params["padding"]),
        pad_mode="constant",
        input_dilation=tuple(params["lhs_dilation"]),
        kernel_dilation=tuple(params["rhs_dilation"]),
        feature_groups=params["feature_group_count"],
    )
    return Contraction(
        kind=kind,
        kernel=_atoms(axes, kernel),
        input=Access(0, (lhs[0], *lhs[2:], lhs[1])),
        output=(result[0], *result[2:], result[1]),
        outputs=_outputs(eqn, {result[1]: 0}, len(out)),
        part_axis={rhs[0]: result[1]} if kind.groups == 1 else {},
    )


def _gather(eqn: Any, which: int, axes: Axes) -> Contraction | str:
    numbers, shape = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape
    if which != 0 or not jnp.issubdtype(eqn.invars[1].aval.dtype, jnp.integer):
        return "it is an index"
    token = _token(shape, eqn.params["slice_sizes"])
    picked = tuple(numbers.start_index_map)
    mode, modes = eqn.params["mode"], jax.lax.GatherScatterMode
    inside = mode in (modes.CLIP, modes.PROMISE_IN_BOUNDS)
    if (
        token is None
        or token not in picked
        or (len(picked) > 1 and not inside)  # else a whole axis may be out of bounds
        or getattr(numbers, "operand_batching_dims", ())
    ):
        return _NO_ROWS
    if any(_repeats(axis) or _mixed(axis) for axis in axes):
        return "it is repeated, once an example"
    rank = len(eqn.outvars[0].aval.shape)
    left = [i for i in range(2) if i not in numbers.collapsed_slice_dims]
    rows = (shape[token], mode == modes.CLIP, picked.index(token))
    # Where each axis of a row is in the result; that of its number has size one.
    places = dict(zip(left, numbers.offset_dims, strict=True))
    place = places[1 - token]
    return Contraction(
        kind=Embed(shape[token], shape[1 - token]),
        kernel=_atoms(axes, (token, 1 - token)),
        input=Access(1, None, rows=rows),
        output=(*(i for i in range(rank) if i != place), place),
        outputs=_outputs(eqn, {place: 0}, rank),
        part_axis={},
    )


def _dynamic_slice(eqn: Any, which: int, axes: Axes) -> Contraction | str:
    shape = eqn.invars[0].aval.shape
    token = _token(shape, eqn.params["slice_sizes"])
    if which != 0 or token is None:
        return _NO_ROWS
    if any(_repeats(axis) or _mixed(axis) for axis in axes):
        return "it is repeated, once an example"
    return Contraction(
        kind=Embed(shape[token], shape[1 - token]),
        kernel=_atoms(axes, (token, 1 - token)),
        input=Access(1 + token, None, rows=(shape[token], True, None)),
        output=(token, 1 - token),
        outputs=_outputs(eqn, {1 - token: 0}, 2),
        part_axis={},
    )


_NO_ROWS = "parts of it are picked by an index, not rows of a table"


def _token(shape: tuple[int, ...], sizes: Sequence[int]) -> int | None:
    """Returns which axis of a table an index is along that takes one row, or None."""
    cut = [i for i, (n, size) in enumerate(zip(shape, sizes)) if n != size]
    rows = len(shape) == 2 and len(cut) == 1 and sizes[cut[0]] == 1
    return cut[0] if rows else None


def _ragged(eqn: Any, which: int, axes: Axes) -> Contraction | str:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    plain = (((1,), (1,)), ((), ()))
    if (
        which != 1
        or tuple(map(_tuples, numbers.dot_dimension_numbers)) != plain
        or tuple(numbers.lhs_ragged_dimensions) != (0,)
        or tuple(numbers.rhs_group_dimensions) != (0,)
    ):
        return "it is multiplied by groups in another way than jax.lax.ragged_dot's"
    if any(_repeats(axis) or _mixed(axis) for axis in axes):
        return "it is repeated, once an example"
    sizes = eqn.invars[1].aval.shape
    return Contraction(
        kind=Experts(*sizes),
        kernel=_atoms(axes, range(3)),
        input=Access(0, (0, 1), groups=2),
        output=(0, 1),
        outputs=_outputs(eqn, {}, 2),
        part_axis={},
    )


def _tuples(pair: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(each) for each in pair)


def _outputs(eqn: Any, axis_of: dict[int, int], rank: int) -> Axes:
    shape = eqn.outvars[0].aval.shape
    return tuple(
        () if shape[i] == 1 else (Atom(axis_of.get(i), 1, shape[i]),)
        for i in range(rank)
    )


def _atoms(axes: Axes, order: Sequence[int]) -> tuple[Atom, ...]:
    return tuple(atom for i in order for atom in axes[i])


def _known(axis: Axis) -> bool:
    """Whether an axis is one of the parameter's."""
    return bool(axis) and all(atom.axis is not None for atom in axis)


def _repeats(axis: Axis) -> bool:
    return bool(axis) and all(atom.axis is None for atom in axis)


def _mixed(axis: Axis) -> bool:
    return len({atom.axis is None for atom in axis}) > 1


def _place(axes: Axes) -> Callable[[int], tuple[int, int]]:
    """Returns what sorts axes as the parameter has them; those of size one go last."""

    def place(i: int) -> tuple[int, int]:
        if not axes[i]:
            return (len(axes) + 1, i)
        first = axes[i][0]
        return (len(axes) if first.axis is None else first.axis, -first.stride)

    return place


_READERS: dict[str, Callable[[Any, int, Axes], Contraction | str]] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "ragged_dot_general": _ragged,
    "ragged_dot": _ragged,
}
PRIMITIVES = frozenset(_READERS)

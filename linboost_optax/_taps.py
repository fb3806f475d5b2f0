"""The tap: an identity whose backward pass emits statistics of a layer's inputs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from linboost_optax import _checks, _layers
from linboost_optax._geometry import Dense
from linboost_optax._layers import Layer
from linboost_optax._statistics import Gram, Inputs, Kind, Moments, Sketch, Statistic


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _emit(layer: Layer, y: jax.Array, x: jax.Array, t: Statistic) -> jax.Array:
    return y


def _emit_fwd(layer, y, x, t):
    # Calling the tap again keeps it alive for an outer differentiation, so a loss
    # that differentiates the network with respect to its inputs still emits.
    return _emit(layer, y, x, t), x


def _emit_bwd(layer, x, g):
    return g, None, _layers.measure(layer, x)


_emit.defvjp(_emit_fwd, _emit_bwd)


def emit(layer: Layer, y: jax.Array, x: jax.Array, t: Statistic) -> jax.Array:
    """Returns ``y``; the cotangent of ``t`` becomes the statistic of ``x``.

    The tap sits on the output ``y`` rather than on the input because inputs may be
    integers (tokens), or constants whose cotangent nobody else needs.

    Args:
      layer: static facts of the layer that maps ``x`` to ``y``.
      y: the layer's output.
      x: the layer's input.
      t: a zero statistic.

    Returns:
      ``y``, unchanged.
    """
    return _emit(layer, y, jax.lax.stop_gradient(x), _vary_like(x, t))


def _vary_like(x: jax.Array, t: Statistic) -> Statistic:
    """Returns ``t``, its statistics summed over devices where ``x`` is sharded by hand.

    Inside ``jax.shard_map`` inputs differ from device to device and ``t`` does not. A
    select on ``x`` says so to JAX, and its transpose is the sum, as for the weights.
    """
    if x.size == 0 or not jax.sharding.get_abstract_mesh().manual_axes:
        return t
    one = x.reshape(-1)[0]
    return jax.tree.map(lambda leaf: jnp.where(one == one, leaf, leaf), t)


def tap(x: jax.Array, t: Statistic) -> jax.Array:
    r"""Returns ``x`` and emits its statistics as the cotangent of ``t``.

    .. math::
      \mathrm{tap}(x, t) = x, \qquad
      \frac{\partial}{\partial t} := \Big(n, \sum x, \sum x x^T\Big)

    The interface for code that is not Flax: tap the input of a linear layer, then
    differentiate the loss with respect to ``(params, taps.zeros())``.

    Args:
      x: input of a linear layer, floating, shape ``[..., feature]``; every axis but
        the last counts as samples.
      t: a zero ``Moments``, ``Gram``, ``Sketch`` or ``Inputs`` for one layer with one
        group, as ``Taps.zeros`` makes them.

    Returns:
      ``x``, same shape and dtype.

    Raises:
      TypeError: if ``x`` is not floating, or ``t`` is not a statistic.
      ValueError: if the width of ``x`` is not that of ``t``.

    Example:
      >>> import jax, jax.numpy as jnp, linboost_optax as lbo
      >>> taps = lbo.dense_taps({"hidden": (3, 2)}, statistic="moments")
      >>> def loss(params, t, x):
      ...     x = lbo.tap(x, t["hidden"])
      ...     return jnp.sum(x @ params["hidden"]["kernel"])
      >>> params = {"hidden": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
      >>> grads, stats = jax.grad(loss, argnums=(0, 1))(
      ...     params, taps.zeros(), jnp.ones((5, 3))
      ... )
      >>> stats["hidden"].sum
      Array([[5., 5., 5.]], dtype=float32)

    References:
      Munoz (2025), arXiv:2502.01131, section 4: the moments of a layer's inputs.
    """
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        raise TypeError(
            f"`x` must be floating, got {jnp.result_type(x)}. Cast it, or leave the "
            "layer untapped."
        )
    rank = t.outer.shape[-1] if isinstance(t, Sketch) else 1
    if isinstance(t, Inputs):
        statistic, width, shape = "inputs", t.x.shape[-1], t.x.shape
    elif isinstance(t, Moments | Gram | Sketch):
        statistic = _NAMES[type(t)]
        width, shape = t.sum.shape[-1], x.shape
    else:
        raise TypeError(
            "`t` must be a Moments, Gram, Sketch or Inputs statistic, got "
            f"{type(t).__name__}. Take it from `taps.zeros()`."
        )
    if x.shape[-1:] != (width,) or shape != x.shape:
        raise ValueError(
            f"`x` must have {'shape ' + str(shape) if statistic == 'inputs' else ''}"
            f"{'' if statistic == 'inputs' else f'width {width}'} to match its tap, "
            f"got shape {x.shape}. Tap the input of the very layer `t` was made for."
        )
    dtype = jax.tree.leaves(t)[0].dtype
    layer = Layer(
        (), Dense((), (width,), ()), statistic, x.shape, str(dtype), rank=rank
    )
    return emit(layer, x, x, t)


_NAMES: dict[type, Kind] = {Moments: "moments", Gram: "gram", Sketch: "sketch"}


@dataclass(frozen=True)
class Plain:
    """A parameter array without a tap, and why it keeps its plain gradient."""

    path: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Taps:
    """The tapped layers of a model: static, hashable, no arrays.

    Printing it shows a table of layers, their statistics and what they cost.

    Attributes:
      layers: the tapped layers.
      plain: the parameters that keep their plain gradient.
    """

    layers: tuple[Layer, ...]
    plain: tuple[Plain, ...] = ()

    def zeros(self) -> dict[str, Statistic]:
        """Returns the zero statistics that taps take, by layer name."""
        return {
            layer.key: jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
                _layers.statistic_shapes(layer),
            )
            for layer in self.layers
            if layer.source is None
        }

    def __str__(self) -> str:
        header = ("path", "kind", "kernel", "inputs", "statistic", "bytes")
        rows = [_row(layer) for layer in self.layers]
        rows += [(p.path, "-", _shape(p.shape), "-", "plain", "0") for p in self.plain]
        notes = [p.reason for p in self.plain]
        lines = _columns([header, *rows])
        first = 1 + len(self.layers)
        for i, note in enumerate(notes):
            lines[first + i] += f"  ({note})"
        total = sum(_bytes(layer) for layer in self.layers)
        return "\n".join([*lines, f"statistics: {total:,} bytes"])

    __repr__ = __str__


def _shape(shape: Iterable[int]) -> str:
    return "x".join(str(n) for n in shape) or "scalar"


def _bytes(layer: Layer) -> int:
    if layer.source is not None:
        return 0
    leaves = jax.tree.leaves(_layers.statistic_shapes(layer))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _row(layer: Layer) -> tuple[str, ...]:
    return (
        layer.key or ".",
        layer.geometry.name + (" + bias" if layer.bias else ""),
        _shape(layer.stack + layer.geometry.kernel_shape),
        _shape(layer.input_shape) if layer.input_shape else "any",
        layer.statistic if layer.source is None else f"of {layer.source_key}",
        f"{_bytes(layer):,}",
    )


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.rjust(width) if i == last else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def dense_taps(
    shapes: Mapping[str, tuple[int, int]],
    statistic: Literal["auto", "moments", "gram", "sketch"] = "auto",
    *,
    rank: int = 64,
    kernel: str = "kernel",
    bias: str | None = "bias",
) -> Taps:
    """Describes dense layers of hand-written code, to go with ``tap``.

    Args:
      shapes: kernel shape ``(feature, output)`` of every layer, by the layer's path
        in the parameter tree, ``"/"`` between levels.
      statistic: ``"moments"``, ``"gram"``, ``"sketch"`` or ``"auto"``: Gram up to
        ``2 * rank`` inputs, a sketch above. Default ``"auto"``.
      rank: number of probes of a sketch; default 64.
      kernel: name of the kernel below each path; default ``"kernel"``.
      bias: name of the bias below each path, None for layers without; default
        ``"bias"``.

    Returns:
      The taps, for ``taps.zeros()`` and the optimizers.

    Raises:
      ValueError: if ``statistic`` is unknown, ``rank`` is not positive, or a shape is
        not a pair.

    Example:
      >>> import linboost_optax as lbo
      >>> lbo.dense_taps({"hidden": (3, 2)}, "moments")
      path    kind          kernel  inputs  statistic  bytes
      hidden  Dense + bias  3x2     any     moments       28
      statistics: 28 bytes

    References:
      Munoz (2025), arXiv:2502.01131.
    """
    if statistic not in ("auto", *_NAMES.values()):
        raise ValueError(
            "`statistic` must be 'auto', 'moments', 'gram' or 'sketch', got "
            f"{statistic!r}. Raw inputs have a batch size; make their tap with "
            "`Inputs` by hand."
        )
    _checks.whole("rank", rank, 1)
    layers = []
    for path, shape in shapes.items():
        if len(shape) != 2:
            raise ValueError(
                f"`shapes['{path}']` must be (feature, output), got {shape}. Reshape "
                "kernels with more axes."
            )
        geometry = Dense((), (shape[0],), (shape[1],))
        kind = _layers.automatic(geometry, rank) if statistic == "auto" else statistic
        where = tuple(path.split("/"))
        layers.append(
            Layer(where, geometry, kind, (), "float32", kernel, bias, rank=rank)
        )
    return Taps(tuple(layers))

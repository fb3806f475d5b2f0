"""Flax's own linear modules: each one's kind, read off the module and its input."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import linear as nn_linear
from flax.linen.recurrent import DenseParams

from linboost_optax._kinds import Conv, Dense, Embed

_COMPLEX = "complex inputs; only real ones have a real metric"
_SCALES = "scales and shifts channels one by one; it has no kernel"
_OTHER = "is not a tapped kind of layer; {} is"

# What to do about Flax's modules that have parameters and no tap.
ADVICE: dict[type[nn.Module], str] = {
    DenseParams: "holds weights of OptimizedLSTMCell; LSTMCell, its equal, is tapped",
    nn.Einsum: _OTHER.format("DenseGeneral"),
    nn.ConvLocal: _OTHER.format("Conv, which shares its kernel,"),
    nn.ConvTranspose: _OTHER.format("Conv with `input_dilation`"),
    nn.WeightNorm: "scales the kernel of another layer; use that layer alone to tap it",
    nn.SpectralNorm: "scales the kernel of another layer; use that layer alone",
    nn.BatchNorm: _SCALES,
    nn.LayerNorm: _SCALES,
    nn.RMSNorm: _SCALES,
    nn.GroupNorm: _SCALES,
    nn.InstanceNorm: _SCALES,
    nn.PReLU: "is not linear in its input",
}


def dense(module: nn.Dense, x: jax.Array) -> Dense | str:
    """Returns the kind of an ``nn.Dense``."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _COMPLEX
    return Dense((), (x.shape[-1],), (module.features,))


def dense_general(module: nn.DenseGeneral, x: jax.Array) -> Dense | str:
    """Returns the kind of an ``nn.DenseGeneral``."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _COMPLEX
    # Flax sorts the axes: the kernel's follow the input's order, not the user's.
    axis = tuple(sorted(a - x.ndim if a >= 0 else a for a in _tuple(module.axis)))
    return Dense(
        batch=x.shape[: len(_tuple(module.batch_dims))],
        inputs=tuple(x.shape[a] for a in axis),
        out=_tuple(module.features),
        axis=axis,
    )


def embed(module: nn.Embed, x: jax.Array) -> Embed:
    """Returns the kind of an ``nn.Embed``."""
    del x
    return Embed(module.num_embeddings, module.features)


def conv(module: nn.Conv, x: jax.Array) -> Conv | str:
    """Returns the kind of an ``nn.Conv``."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _COMPLEX
    if module.mask is not None:
        return "masked kernel; drop `mask` to tap it"
    window = _tuple(module.kernel_size)

    def per_axis(value) -> tuple[int, ...]:
        if value is None or isinstance(value, int):
            return (1 if value is None else value,) * len(window)
        return tuple(value)

    dilation = per_axis(module.kernel_dilation)
    padding = nn_linear.canonicalize_padding(module.padding, len(window))
    mode = "constant"
    extent = [(k - 1) * d + 1 for k, d in zip(window, dilation)]
    if padding in ("CIRCULAR", "REFLECT"):
        mode = "wrap" if padding == "CIRCULAR" else "reflect"
        padding = [((k - 1) // 2, k // 2) for k in extent]
    elif padding == "CAUSAL":
        padding = [(dilation[0] * (window[0] - 1), 0)]
    if not isinstance(padding, str):
        padding = tuple((int(low), int(high)) for low, high in padding)
    return Conv(
        window=window,
        in_channels=x.shape[-1],
        out_channels=module.features,
        strides=per_axis(module.strides),
        padding=padding,
        pad_mode=mode,
        input_dilation=per_axis(module.input_dilation),
        kernel_dilation=dilation,
        feature_groups=module.feature_group_count,
    )


def _tuple(value) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)

"""Elementwise activations: value, derivative, inverse and range."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Elementwise = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Activation:
    r"""An elementwise function :math:`\varphi` and what can be said about it.

    Args:
        name: shown in errors and reports.
        fn: :math:`\varphi`, elementwise, shape and dtype preserved.
        inverse: :math:`\varphi^{-1}` on the open range ``(low, high)``, or
            ``None`` (the default) for a function that has no inverse. Only the
            published method of :func:`ills` needs it.
        derivative: :math:`\varphi'`, or ``None`` (the default) to have JAX
            derive it from ``fn``.
        low: lower end of the range of ``fn``. Default minus infinity.
        high: upper end of the range of ``fn``. Default infinity.

    Raises:
        ValueError: if ``low`` is not below ``high``.

    Example:
        >>> import jax.numpy as jnp
        >>> import linboost_optax as lbo
        >>> cube = lbo.Activation("cube", lambda z: z**3, inverse=jnp.cbrt)
        >>> float(cube.slope(jnp.float32(2.0)))
        12.0
    """

    name: str
    fn: Elementwise
    inverse: Elementwise | None = None
    derivative: Elementwise | None = None
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(
                f"`low` must be below `high`, got low={self.low}, high={self.high} for "
                f"activation {self.name!r}. Give the ends of the function's range."
            )

    def slope(self, z: jax.Array) -> jax.Array:
        r"""The derivative :math:`\varphi'(z)`, same shape and dtype as ``z``."""
        if self.derivative is not None:
            return self.derivative(z)
        return jax.jvp(self.fn, (z,), (jnp.ones_like(z),))[1]

    def clip(self, a: jax.Array, margin: float) -> jax.Array:
        """``a`` moved into the range of the function, ``margin`` inside its ends."""
        return jnp.clip(a, self.low + margin, self.high - margin)


def _logit(a: jax.Array) -> jax.Array:
    return jnp.log(a) - jnp.log1p(-a)


def _sigmoid_slope(z: jax.Array) -> jax.Array:
    a = jax.nn.sigmoid(z)
    return a * (1 - a)


def _softplus_inverse(a: jax.Array) -> jax.Array:
    # log(exp(a) - 1), written so that large values do not overflow.
    return a + jnp.log(-jnp.expm1(-a))


def _elu_inverse(a: jax.Array) -> jax.Array:
    return jnp.where(a > 0, a, jnp.log1p(jnp.minimum(a, 0)))


def _elu_slope(z: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(z, 0))


def _leaky_relu_inverse(a: jax.Array) -> jax.Array:
    return jnp.where(a > 0, a, a / 0.01)


TABLE = {
    known.name: known
    for known in (
        Activation("identity", lambda z: z, lambda a: a, jnp.ones_like),
        Activation(
            "tanh", jnp.tanh, jnp.arctanh, lambda z: 1 - jnp.tanh(z) ** 2, -1.0, 1.0
        ),
        Activation("sigmoid", jax.nn.sigmoid, _logit, _sigmoid_slope, 0.0, 1.0),
        Activation(
            "arctan",
            jnp.arctan,
            jnp.tan,
            lambda z: 1 / (1 + z**2),
            -math.pi / 2,
            math.pi / 2,
        ),
        Activation("asinh", jnp.arcsinh, jnp.sinh, lambda z: jax.lax.rsqrt(1 + z**2)),
        Activation("softplus", jax.nn.softplus, _softplus_inverse, jax.nn.sigmoid, 0.0),
        Activation("elu", jax.nn.elu, _elu_inverse, _elu_slope, -1.0),
        Activation("leaky_relu", jax.nn.leaky_relu, _leaky_relu_inverse),
        # No inverse: accepted by the weighted method, refused by the published one.
        Activation("relu", jax.nn.relu, low=0.0),
        Activation("gelu", jax.nn.gelu),
        Activation("silu", jax.nn.silu),
    )
}
INVERTIBLE = tuple(name for name, known in TABLE.items() if known.inverse is not None)


def get_activation(activation: str | Activation, argument: str) -> Activation:
    """Look up a name in the table; an :class:`Activation` passes through.

    Args:
        activation: a name, or the user's own :class:`Activation`.
        argument: name of the argument, for the error.

    Returns:
        The activation.

    Raises:
        ValueError: if the name is not in the table.
        TypeError: if it is neither a name nor an :class:`Activation`.
    """
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str):
        raise TypeError(
            f"`{argument}` must be a name or an `Activation`, got "
            f"{type(activation).__name__}. Wrap your function: "
            "`Activation('mine', fn, inverse=...)`."
        )
    if activation not in TABLE:
        raise ValueError(
            f"`{argument}` must be one of {sorted(TABLE)}, got {activation!r}. For "
            "another function pass `Activation('mine', fn, inverse=...)`."
        )
    return TABLE[activation]

"""Elementwise activations: value, derivative, inverse and range."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Elementwise = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Activation:
    r"""Describes an elementwise function :math:`\varphi` that follows a layer.

    Args:
      name: shown in errors and reports.
      fn: :math:`\varphi`, elementwise, keeps shape and dtype.
      inverse: :math:`\varphi^{-1}` on the open range ``(low, high)``; only the
        published method of ``ills`` needs it. Default None: there is no inverse.
      derivative: :math:`\varphi'`; default None has JAX derive it from ``fn``.
      low: lower end of the range of ``fn``; default minus infinity.
      high: upper end of the range of ``fn``; default infinity.

    Raises:
      ValueError: if ``low`` is not below ``high``.

    Example:
      >>> import jax.numpy as jnp
      >>> from linboost_optax.ills import Activation
      >>> cube = Activation("cube", lambda z: z**3, inverse=jnp.cbrt)
      >>> float(cube.slope(jnp.float32(2.0)))
      12.0

    References:
      Khadilkar (2023), arXiv:2307.05189: activations and their inverses.
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
        r"""Returns :math:`\varphi'(z)`, same shape and dtype as ``z``."""
        if self.derivative is not None:
            return self.derivative(z)
        return jax.jvp(self.fn, (z,), (jnp.ones_like(z),))[1]

    def clip(self, a: jax.Array, margin: float) -> jax.Array:
        """Returns ``a`` moved into the range, ``margin`` inside its ends."""
        return jnp.clip(a, self.low + margin, self.high - margin)

    def invert(self, a: jax.Array) -> jax.Array:
        r"""Returns :math:`\varphi^{-1}(a)` for ``a`` inside the range."""
        if self.inverse is None:
            raise ValueError(
                f"`inverse` must be given to invert {self.name!r}, got None. Use "
                f"`Activation({self.name!r}, fn, inverse=...)`."
            )
        return self.inverse(a)


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
    """Returns the activation of a name; an ``Activation`` passes through.

    Args:
      activation: a name of ``TABLE``, or the user's own ``Activation``.
      argument: name of the argument, for the error.

    Raises:
      ValueError: if the name is not in the table.
      TypeError: if it is neither a name nor an ``Activation``.
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

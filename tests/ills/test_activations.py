"""The table of activations: inverse, derivative and range agree with the function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linboost_optax import ills
from linboost_optax.ills._model.activations import INVERTIBLE, TABLE, get_activation

Z = np.linspace(-4, 4, 41)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", INVERTIBLE)
def test_inverse(name):
    kind = TABLE[name]
    np.testing.assert_allclose(kind.inverse(kind.fn(jnp.asarray(Z))), Z, atol=1e-10)


@pytest.mark.parametrize("name", TABLE)
def test_derivative(name):
    z = jnp.asarray(Z[Z != 0])
    automatic = jax.vmap(jax.grad(TABLE[name].fn))(z)
    np.testing.assert_allclose(TABLE[name].slope(z), automatic, atol=1e-10)


@pytest.mark.parametrize("name", TABLE)
def test_range(name):
    kind = TABLE[name]
    a = kind.fn(jnp.asarray([-30.0, *Z, 30.0]))
    assert jnp.all((a >= kind.low) & (a <= kind.high))
    margin = 1e-3
    clipped = kind.clip(jnp.asarray([-50.0, 50.0]), margin)
    if kind.inverse is not None:
        assert jnp.all(jnp.isfinite(kind.inverse(clipped)))


def test_derivative_is_derived_when_not_given():
    mine = ills.Activation("mine", lambda z: z**3 + z)
    np.testing.assert_allclose(mine.slope(jnp.asarray(Z)), 3 * Z**2 + 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("got", "error", "message"),
    [
        ("nope", ValueError, "`activation` must be one of"),
        (jnp.tanh, TypeError, "must be a name or an `Activation`"),
    ],
)
def test_lookup_errors(got, error, message):
    with pytest.raises(error, match=message):
        get_activation(got, "activation")


def test_what_has_no_inverse_cannot_be_inverted():
    with pytest.raises(ValueError, match=r"`inverse` must be given to invert 'relu'"):
        TABLE["relu"].invert(jnp.ones(2))


def test_range_must_not_be_empty():
    with pytest.raises(ValueError, match="`low` must be below `high`"):
        ills.Activation("mine", jnp.tanh, low=1.0, high=1.0)

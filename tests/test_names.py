"""Names of parameters: boxes of Flax are none, parts that are called `value` are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from linboost_optax._program.tree import names


class Own(nnx.Param):
    """A kind of variable of the user's."""


class Parts(nnx.Module):
    def __init__(self):
        self.own = Own(jnp.ones((3, 2)))
        self.value = nnx.Linear(2, 2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("tree", [Parts(), nnx.state(Parts())], ids=["module", "state"])
def test_of_nnx(tree):
    assert names(tree) == [("own",), ("value", "bias"), ("value", "kernel")]


def test_of_attention_in_nnx():
    model = nnx.MultiHeadAttention(2, 4, 4, decode=False, rngs=nnx.Rngs(0))
    found = names(nnx.state(model, nnx.Param))
    parts = ("key", "out", "query", "value")
    assert found == [(part, name) for part in parts for name in ("bias", "kernel")]


class Value(nn.Module):
    boxed: bool

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.ones
        init = nn.with_partitioning(init, (None, None)) if self.boxed else init
        return x @ self.param("value", init, (3, 2))


@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_of_linen(boxed, whole):
    variables = Value(boxed).init(jax.random.key(0), jnp.ones((2, 3)))
    assert names(variables if whole else variables["params"]) == [("value",)]

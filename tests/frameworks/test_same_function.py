"""Twins compute one function: the same outputs and gradients in every framework."""

import jax
import numpy as np
import pytest

from tests.frameworks import task
from tests.frameworks.twin import MODELS, assert_same, build

# float64: two forward and backward passes that differ in the order of their sums.
TOLERANCE = 1e-12

# Frameworks promote implicitly in attention, normalisation and embeddings.
pytestmark = pytest.mark.lenient("layers of the frameworks promote implicitly")

FRAMEWORKS = ["linen", "nnx", "equinox", "haiku"]
CASES = [(name, model, model) for name in FRAMEWORKS for model in MODELS]
CASES.append(("linen", "gru", "native_gru"))


def evaluate(model, one):
    """Output, loss and gradients of a twin at the common weights."""
    x, labels = task.batches(model, 1)[0]
    params = one.from_common(task.weights(model))
    output = jax.jit(one.forward)(params, x)
    loss, grads = jax.jit(jax.value_and_grad(task.loss_of(one.forward)))(
        params, x, labels
    )
    return {"output": np.asarray(output), "loss": loss, **one.to_common(grads)}


@pytest.mark.parametrize(("framework", "model", "name"), CASES)
def test_outputs_and_gradients_are_those_of_hand_written_jax(framework, model, name):
    with jax.enable_x64(True):
        want = evaluate(model, build("jax", model))
        assert_same(evaluate(model, build(framework, name)), want, TOLERANCE)
        # Whatever is added to all scores of a query leaves its shares as they are.
        for key, value in want.items():
            assert (np.abs(value).max() < TOLERANCE) == (key == "key.b"), key


@pytest.mark.parametrize("framework", ["jax", *FRAMEWORKS])
@pytest.mark.parametrize("model", MODELS)
def test_the_common_layout_loses_nothing(framework, model):
    with jax.enable_x64(True):
        one, common = build(framework, model), task.weights(model)
        assert_same(one.to_common(one.from_common(common)), common, 0.0)


def test_hand_written_mlp_is_the_network_it_is_meant_to_be():
    """A loop over samples and central differences, without any JAX."""
    common, (x, labels) = task.weights("mlp"), task.batches("mlp", 1)[0]

    def loss(common):
        total = 0.0
        for row, label in zip(x, labels, strict=True):
            h = np.tanh(row @ common["0.w"] + common["0.b"])
            h = np.tanh(h @ common["1.w"] + common["1.b"])
            logits = h @ common["2.w"] + common["2.b"]
            total += np.log(np.exp(logits).sum()) - logits[label]
        return total / len(x)

    with jax.enable_x64(True):
        got = evaluate("mlp", build("jax", "mlp"))
    np.testing.assert_allclose(got["loss"], loss(common), rtol=0, atol=TOLERANCE)
    for name, value in common.items():
        index, step = (0,) * value.ndim, 1e-6
        up, down = ({**common, name: value.copy()} for _ in range(2))
        up[name][index] += step
        down[name][index] -= step
        slope = (loss(up) - loss(down)) / (2 * step)
        np.testing.assert_allclose(got[name][index], slope, rtol=0, atol=1e-8)

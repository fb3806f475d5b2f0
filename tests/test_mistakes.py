"""What users get wrong is said in their words, with the way out."""

import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import linboost_optax as lbo
from linboost_optax import linen

X = jnp.ones((8, 3))
MODEL = nn.Dense(2)
TAPS = linen.taps(MODEL, X)


class Switched(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(2)(x)

    @nn.compact
    def encode(self, x):
        return nn.Dense(2)(x)


def _promoting(function, *args):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return function(*args)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: linen.taps(MODEL),
            r"takes the arguments.*Dense\(self, inputs.*miss",
        ),
        (
            lambda: linen.taps(Switched(), X),
            r"Switched\(self, x, train\): missing a",
        ),
        (
            lambda: linen.taps(Switched(), method="encode"),
            r"Switched\(self, x\): missing a required argument: 'x'",
        ),
        (
            lambda: linen.taps(MODEL, (32, 8)),
            r"got \(32, 8\), which reads like a sh",
        ),
        (  # Flax makes a vector of it, where promotion is not strict
            lambda: _promoting(linen.taps, MODEL, (32, 8)),
            r"got \(32, 8\), which reads like a sh",
        ),
        (
            lambda: linen.taps(nn.Dense, X),
            r"got the class Dense. Make an instance",
        ),
        (
            lambda: linen.taps(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), X),
            r"got the flax.nnx module Linear",
        ),
        (lambda: linen.taps(nnx.Linear, X), "got the flax.nnx module"),
        (
            lambda: linen.value_and_grad(jnp.sum, TAPS, argnums=1),  # type: ignore
            r"`argnums` is no argument of `linen.value_and_grad`, which differ",
        ),
        (
            lambda: linen.value_and_grad(jnp.ones(()), TAPS),  # type: ignore
            r"`loss_fn` must be callable, got \w*Array\w*. Pass the function",
        ),
    ],
)
def test_wrong_arguments(call, match):
    with pytest.raises(TypeError, match=match):
        call()


def test_errors_of_the_model_itself_are_its_own():
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, x):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        linen.taps(Broken(), X)


def test_taps_are_static_and_pass_through_jit():
    params = MODEL.init(jax.random.key(0), X)

    @jax.jit
    def step(params, taps, x):
        def loss_fn(params):
            return jnp.mean(MODEL.apply(params, x) ** 2)

        return linen.value_and_grad(loss_fn, taps)(params)

    _, _, stats = step(params, TAPS, X)
    np.testing.assert_allclose(stats[""].count, [8])
    assert jax.tree.leaves(TAPS) == []


def test_modules_are_there_without_an_import_of_their_own():
    code = "import linboost_optax as lbo; print(lbo.linen.taps, lbo.nnx, lbo.sklearn)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    with pytest.raises(AttributeError, match="has no attribute 'lining'"):
        _ = lbo.lining


def test_names_with_slashes_as_haiku_has_them():
    params = {
        "mlp/~/linear_0": {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)},
        "mlp/~/linear_1": {"w": jnp.ones((2, 1)), "b": jnp.zeros(1)},
    }
    shapes = {name: each["w"].shape for name, each in params.items()}
    taps = lbo.dense_taps(shapes, "moments", kernel="w", bias="b")

    def loss(params, t, x):
        for name, each in params.items():
            x = lbo.tap(x, t[name]) @ each["w"] + each["b"][None]
        return jnp.mean(x**2)

    grads, stats = jax.grad(loss, (0, 1))(params, taps.zeros(), X)
    tx = lbo.scale_by_lnb(taps, lbo.IncompleteCholesky())
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_kernels_that_are_stored_transposed():
    params = {"layers": [{"weight": jnp.ones((2, 3)), "bias": jnp.zeros(2)}]}
    taps = lbo.dense_taps({"layers/0": (3, 2)}, kernel="weight")
    with pytest.raises(ValueError, match=r"weight of shape \(3, 2\).*transposed, \(2"):
        lbo.lnb(0.1, taps).init(params)


def test_two_results_cannot_be_unpacked(tmp_path):
    pytest.importorskip("pyright")
    program = """
import jax.numpy as jnp
from linboost_optax import linen

def loss_fn(params: dict[str, jnp.ndarray], x: jnp.ndarray) -> jnp.ndarray:
    return x

def run(taps, params, x):
    loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params, x)
    {line}
"""
    wrong = "loss, grads = linen.value_and_grad(loss_fn, taps)(params, x)"
    errors = []
    for i, line in enumerate(("pass", wrong)):
        file = tmp_path / f"case_{i}.py"
        file.write_text(program.replace("{line}", line))
        run = subprocess.run(
            [sys.executable, "-m", "pyright", "--outputjson",
             "--pythonpath", sys.executable, str(file)],
            capture_output=True, text=True,
        )  # fmt: skip
        errors.append(json.loads(run.stdout)["generalDiagnostics"])
    assert errors[0] == []
    assert any("Tuple size mismatch" in each["message"] for each in errors[1])


def loss_fn(params, x):
    return jnp.mean(MODEL.apply(params, x) ** 2)


def updated(tx, state, variables, taps=TAPS):
    _, grads, stats = linen.value_and_grad(loss_fn, taps)(variables, X)
    return tx.update(grads, state, variables, stats=stats)


OPTIMIZERS = {
    "lnb": lbo.scale_by_lnb,
    "whiten": lambda taps: lbo.whiten(optax.adam(0.1), taps),
    "multi_steps": lambda taps: lbo.multi_steps(lbo.lnb(0.1, taps), taps, 2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_variables_for_params_alone(name):
    tx = OPTIMIZERS[name](TAPS)
    variables = MODEL.init(jax.random.key(0), X)
    _, grads, stats = linen.value_and_grad(loss_fn, TAPS)(variables, X)
    with pytest.raises(
        ValueError, match=r"`state` must be what.*at \S+'bias'\S* it has noth"
    ):
        tx.update(grads["params"], tx.init(variables), variables["params"], stats=stats)


@pytest.mark.parametrize("name", ["lnb", "whiten"])
def test_state_of_another_statistic(name):
    variables = MODEL.init(jax.random.key(0), X)
    saved = OPTIMIZERS[name](linen.taps(MODEL, X, statistic="moments")).init(variables)
    with pytest.raises(ValueError, match=r"`state` must be.*restore a checkpoint"):
        updated(OPTIMIZERS[name](TAPS), saved, variables)


@pytest.mark.parametrize(("one", "other"), [("lnb", "whiten"), ("whiten", "lnb")])
def test_state_of_another_optimizer(one, other):
    variables = MODEL.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="`state` must be what this optimizer's"):
        updated(
            OPTIMIZERS[one](TAPS), OPTIMIZERS[other](TAPS).init(variables), variables
        )


def test_errors_of_an_update_with_its_own_state_stay_what_they_are():
    variables = MODEL.init(jax.random.key(0), X)
    tx = OPTIMIZERS["lnb"](TAPS)
    with pytest.raises(ValueError, match="`stats` "):
        tx.update(variables, tx.init(variables), variables)


@pytest.mark.parametrize("rate", [-0.3, float("nan")])
def test_learning_rates_that_ascend(rate):
    with pytest.raises(ValueError, match="`learning_rate` must be"):
        lbo.lnb(rate, TAPS)


def test_raw_inputs_over_devices_by_hand():
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("data",), axis_types=auto)
    params = MODEL.init(jax.random.key(0), X)
    taps = linen.taps(MODEL, X, statistic="inputs")
    step = jax.shard_map(
        lambda params, x: linen.value_and_grad(loss_fn, taps)(params, x)[2],
        mesh=mesh,
        in_specs=(jax.P(), jax.P("data")),
        out_specs=jax.P(),
        check_vma=False,
    )
    with pytest.raises(ValueError, match="'inputs', which cannot be added up over the"):
        jax.jit(step)(params, X)

"""Training over a mesh is training on one device: see `tests/sharding`."""

import functools
import json
import os
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import linboost_optax as lbo
from linboost_optax import _sharding, linen
from tests.networks import MLP, data, squared_error, train_step
from tests.sharding.groups import GROUPS


def environment(devices):
    """Returns that of a process with so many devices."""
    return {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')}"
        f" --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        # Devices that wait for each other need threads of their own.
        "NPROC": "16",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",
    }


@functools.cache
def failures(group, bits=64):
    """Returns the traceback of every case that fails, from a process of its own."""
    command = [sys.executable, "-m", "tests.sharding", group]
    env = {**environment(4), "JAX_ENABLE_X64": str(int(bits == 64))}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "case"), [(group, case) for group in GROUPS for case in GROUPS[group]]
)
def test_four_devices_train_as_one(group, case):
    assert failures(group).get(case) is None


@pytest.mark.slow
@pytest.mark.parametrize("case", GROUPS["statistics"])
def test_four_devices_train_as_one_in_float32(case):
    assert failures("statistics", 32).get(case) is None


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_as_one_device(count):
    """Four devices, on the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.sharding.processes", address, str(count)]
    started = [
        subprocess.Popen(
            [*command, str(number)],
            env=environment(4 // count),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        said = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (out, err) in zip(started, said):
        assert process.returncode == 0, err
        assert json.loads(out.splitlines()[-1]) == {}


# A mesh of one device has the types of a larger one.


@pytest.fixture
def mesh():
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))


def jaxpr_of_a_step(place=lambda tree, spec: tree):
    model, batch = MLP(), data()
    taps = linen.taps(model, batch[0], statistic="sketch")
    params = place(model.init(jax.random.key(0), batch[0])["params"], P())
    tx = lbo.lnb(0.1, taps, lbo.Cholesky())
    step = train_step(squared_error(model), taps, tx)
    return str(jax.make_jaxpr(step)(params, tx.init(params), place(batch, P("data"))))


def test_the_step_of_one_device_is_what_it_is_without_this(monkeypatch):
    with_it = jaxpr_of_a_step()
    monkeypatch.setattr(_sharding, "_explicit_mesh", lambda tree: None)
    assert jaxpr_of_a_step() == with_it


def test_an_explicit_mesh_needs_this(mesh, monkeypatch):
    def place(tree, spec):
        return jax.device_put(tree, NamedSharding(mesh, spec))

    assert "reshard" in jaxpr_of_a_step(place)
    monkeypatch.setattr(_sharding, "_explicit_mesh", lambda tree: None)
    with pytest.raises(Exception, match="ambiguous"):
        jaxpr_of_a_step(place)


@pytest.mark.parametrize("statistic", ["gram", "inputs"])
@pytest.mark.parametrize("shape_only", [True, False])
def test_taps_of_sharded_inputs_are_those_of_any(mesh, statistic, shape_only):
    # Flax refuses tokens that are sharded over an explicit axis; taps need shapes.
    model, x = nn.Embed(5, 2), jnp.array([1, 4])
    sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
    if shape_only:
        sharded = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharded.sharding)
    want = linen.taps(model, x, statistic=statistic)
    assert linen.taps(model, sharded, statistic=statistic) == want
    with jax.set_mesh(mesh):
        assert linen.taps(model, sharded, statistic=statistic) == want


def test_taps_of_boxed_parameters_under_a_mesh():
    kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "data"))
    model, x = nn.Dense(2, kernel_init=kernel), jnp.ones((8, 3))
    want = linen.taps(model, x)
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))):
        assert linen.taps(model, x) == want


def test_what_is_sharded_like_nothing_is_everywhere(mesh):
    x = jax.device_put(jnp.ones(4), NamedSharding(mesh, P("data")))

    @jax.jit
    def step(bias, x):
        new, total = _sharding.sharded_like(
            ({"x": x, "bias": bias}, jnp.zeros(())),
            lambda x, bias: ({"x": 2 * x, "bias": bias + 1}, jnp.sum(x)),
            x,
            bias,
        )
        assert jax.typeof(new["x"]).sharding.spec == P("data")
        assert jax.typeof(new["bias"]).sharding.spec == P(None)
        assert jax.typeof(total).sharding.spec == P()
        return new, total

    new, total = step(jnp.zeros(2), x)
    assert new["x"].tolist() == [2, 2, 2, 2]
    assert new["bias"].tolist() == [1, 1]
    assert total == 4

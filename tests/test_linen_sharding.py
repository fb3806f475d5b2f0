"""Training over a mesh is training on one device: see `tests/sharding`."""

import json
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import linboost_optax as lbo
from linboost_optax import _sharding, linen
from tests.networks import MLP, data, squared_error, train_step
from tests.sharding import stopped
from tests.sharding.cases import (
    OPTIMIZERS,
    STATISTICS,
    TOLERANCE,
    close,
    loss_of,
    step_of,
)
from tests.sharding.groups import GROUPS
from tests.sharding.host import environment


def in_processes(module, count, *arguments, bits=64):
    """Returns exit status, output and errors of processes that have four devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", module, address, str(count)]
    started = [
        subprocess.Popen(
            [*command, str(number), *arguments],
            env=environment(4 // count, bits),
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
    return [(each.returncode, *texts) for each, texts in zip(started, said)]


def failures(*group):
    """Returns the traceback of every case that fails, from a process of its own."""
    command = [sys.executable, "-m", "tests.sharding", *group]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


# One test for all cases of a process: two workers would start the process twice.
@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_four_devices_train_as_one(group):
    assert failures(group) == {}


@pytest.mark.slow
def test_every_kind_statistic_solver_layout_and_adapter_train_as_on_one_device():
    """Each of them once; any two together take minutes, all hours: see `product`."""
    assert failures("product", "1") == {}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_as_one_device(count):
    """Four devices, on the loopback interface."""
    for code, out, err in in_processes("tests.sharding.processes", count):
        assert code == 0, err
        assert json.loads(out.splitlines()[-1]) == {}


@pytest.mark.slow
@pytest.mark.lenient("optimizers of Optax promote implicitly")
def test_a_process_that_stops_ends_all_and_leaves_the_checkpoint(tmp_path):
    """What was saved goes on: here, on one device."""
    first, _ = in_processes("tests.sharding.stopped", 2, str(tmp_path), bits=32)
    code, out, err = first
    assert code != 0, "the first process ended as if nothing had happened"
    assert "went on alone" not in out
    assert err  # says why: a connection that was closed, or a heartbeat that is missing

    model, params, x = stopped.start(stopped.CASE.model)
    taps = linen.taps(model, x, statistic=STATISTICS[stopped.CASE.statistic])
    tx, loss = OPTIMIZERS[stopped.CASE.optimizer](taps), loss_of(model)
    step = jax.jit(step_of(loss, tx, linen.value_and_grad(loss, taps)))

    def after(params, state, steps):
        for _ in range(steps):
            last, state = step(params, state, x)
            params = last.params
        return params, state

    begun = params, tx.init(params)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), begun
    )
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(tmp_path / "state", target)
    got = after(*saved, 3)[0]
    close(got, after(*begun, stopped.SAVED + 3)[0], TOLERANCE)


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


def test_loops_may_run_on_automatic_axes(mesh):
    """What is measured in every turn is closed over: it is of the mesh outside."""
    model, x = nn.RNN(nn.SimpleCell(2)), jnp.ones((4, 3, 5))
    params = model.init(jax.random.key(0), x)["params"]
    taps, loss = linen.taps(model, x, statistic="gram"), loss_of(model)
    want = linen.value_and_grad(loss, taps)(params, x)
    with jax.set_mesh(mesh):
        loss = jax.sharding.auto_axes(loss, out_sharding=P())
        put = jax.device_put((params, x), NamedSharding(mesh, P()))
        got = jax.jit(linen.value_and_grad(loss, taps))(*put)
    close(got, want, 1e-6)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize(("what", "way_out"), [("stats", "call of"), ("state", "Move")])
@pytest.mark.parametrize("name", ["cholesky", "whiten", "polar", "accumulated"])
@pytest.mark.lenient("optimizers of Optax promote implicitly")
def test_types_of_two_meshes_are_refused(mesh, name, what, way_out, jit):
    model, x = nn.Dense(2), jnp.ones((8, 3))
    params = model.init(jax.random.key(0), x)["params"]
    taps = linen.taps(model, x, statistic="gram")
    _, grads, stats = linen.value_and_grad(loss_of(model), taps)(params, x)
    tx = OPTIMIZERS[name](taps)
    args = {"grads": grads, "state": tx.init(params), "params": params, "stats": stats}
    other = jax.make_mesh((1,), ("other",), axis_types=(AxisType.Explicit,))
    args = {
        key: jax.device_put(tree, NamedSharding(other if key == what else mesh, P()))
        for key, tree in args.items()
    }

    def update(grads, state, params, stats):
        return tx.update(grads, state, params, stats=stats)

    said = rf"`{what}` must be over the mesh .*'other': 1.*'data': 1.*{way_out}"
    with pytest.raises(ValueError, match=said):
        (jax.jit(update) if jit else update)(**args)


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

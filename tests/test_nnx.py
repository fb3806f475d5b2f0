"""NNX modules: gradients, statistics and what a loss changes are as without taps.

Expected gradients and states are those of ``nnx.value_and_grad``; expected statistics
are NumPy's, of the inputs that reach the kernels while the plain loss runs.
"""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import linboost_optax as lbo
from tests.nnx_oracle import (
    MLP,
    Noisy,
    check,
    check_gram,
    mean_square,
    normal,
    raw,
    same_state,
)
from tests.oracle import same_tree

pytestmark = pytest.mark.lenient("layers of NNX promote implicitly")

X = normal(0, 6, 3)
MODEL = MLP(nnx.Rngs(0))
TAPS = lbo.nnx.taps(MODEL, X, statistic="gram")


def taps_of(model, *args, **options):
    return lbo.nnx.taps(model, *args, statistic="gram", **options)


@pytest.mark.parametrize("statistic", ["moments", "gram", "sketch", "auto"])
@pytest.mark.parametrize("jit", [True, False])
def test_module(statistic, jit):
    taps = lbo.nnx.taps(MODEL, X, statistic=statistic)
    check(taps, mean_square, MODEL, X, jit=jit)


def test_jitted_step_is_traced_once():
    times = []

    @nnx.jit
    def step(model, x):
        times.append(x.shape)
        return lbo.nnx.value_and_grad(mean_square, TAPS)(model, x)

    first, second = step(MODEL, X), step(MODEL, 2 * X)
    assert len(times) == 1
    check_gram(first[2]["hidden"], X)
    check_gram(second[2]["hidden"], 2 * X)


@pytest.mark.parametrize("jit", [True, False])
def test_auxiliary_data(jit):
    def loss_fn(model, x):
        y = model(x)
        return jnp.mean(jnp.square(y)), {"y": y, "none": None}

    check(TAPS, loss_fn, MODEL, X, has_aux=True, jit=jit)


def test_auxiliary_modules_are_the_ones_that_were_passed():
    def loss_fn(model, other, x):
        aux = (model.hidden, {"bias": model.out.bias}, other, MLP(nnx.Rngs(9)))
        return mean_square(model, x), aux

    model, other = nnx.clone(MODEL), MLP(nnx.Rngs(4))
    collect = lbo.nnx.value_and_grad(loss_fn, TAPS, has_aux=True)
    (_, (hidden, biases, same, new)), *_ = collect(model, other, X)
    assert hidden is model.hidden
    assert biases["bias"] is model.out.bias
    assert same is other
    same_state(new, MLP(nnx.Rngs(9)))


@pytest.mark.parametrize("jit", [True, False])
def test_batch_norm_and_dropout(jit):
    model = Noisy(nnx.Rngs(0))
    model.train()
    taps = taps_of(model, X)
    *_, (after, _) = check(taps, mean_square, model, X, jit=jit)
    assert after.drop.rngs.count[...] == model.drop.rngs.count[...] + 1
    assert not np.allclose(after.norm.mean[...], model.norm.mean[...])


def test_running_averages_that_are_used():
    model = Noisy(nnx.Rngs(0))
    model.eval()
    *_, (after, _) = check(taps_of(model, X), mean_square, model, X)
    same_state(after, model)


def test_two_steps_draw_two_masks():
    model = Noisy(nnx.Rngs(0))
    model.train()
    plain, taps = nnx.clone(model), taps_of(model, X)
    for _ in range(2):
        want = nnx.value_and_grad(mean_square)(plain, X)
        got = lbo.nnx.value_and_grad(mean_square, taps)(model, X)
        same_tree(got[:2], want)
        same_state(model, plain)


@pytest.mark.parametrize("jit", [True, False])
def test_nodes_among_the_arguments(jit):
    metrics = nnx.MultiMetric(
        loss=nnx.metrics.Average("loss"), large=nnx.metrics.Average("large")
    )
    optimizer = nnx.Optimizer(MLP(nnx.Rngs(5)), optax.adam(1e-3), wrt=nnx.Param)
    nodes = {"teachers": (MLP(nnx.Rngs(3)), [Noisy(nnx.Rngs(4))]), "to": optimizer}

    def loss_fn(model, x, metrics, nodes, scale):
        teacher, (noisy,) = nodes["teachers"]
        loss = jnp.mean(jnp.square(model(x) - teacher(x) - noisy(x)))
        metrics.update(loss=loss, large=10 * loss)
        nodes["to"].step[...] += 1
        return scale["of"] * loss

    scale = {"of": jnp.asarray(2.0)}
    *_, after = check(TAPS, loss_fn, MODEL, X, metrics, nodes, scale, jit=jit)
    values = after[2].compute()
    np.testing.assert_allclose(values["large"], 10 * values["loss"], rtol=1e-6)
    assert after[3]["to"].step[...] == 1


def test_nodes_among_the_keyword_arguments():
    # One has the name of the module, which the loss calls something else.
    def loss_fn(net, x, *, model, metric):
        metric.update(values=model(x))
        return jnp.mean(jnp.square(net(x)))

    metric = nnx.metrics.Average()
    collect = lbo.nnx.value_and_grad(loss_fn, TAPS)
    _, _, stats = collect(MODEL, X, model=MLP(nnx.Rngs(2)), metric=metric)
    check_gram(stats["hidden"], X)
    assert metric.count[...] == 12
    other = nnx.metrics.Average()
    by_name = collect(net=MODEL, x=X, model=MLP(nnx.Rngs(2)), metric=other)
    same_tree(by_name[2], stats)
    same_state(other, metric)


def test_attributes_that_a_loss_changes():
    class Changing(MLP):
        def __call__(self, x):
            self.calls = 7
            self.cache = nnx.Cache(x)
            del self.old
            return super().__call__(x)

    def changed(collect):
        model = Changing(nnx.Rngs(0))
        model.old = nnx.Cache(jnp.ones(1))
        collect(model, X)
        return model

    want = changed(nnx.value_and_grad(mean_square))
    got = changed(lbo.nnx.value_and_grad(mean_square, TAPS))
    assert got.calls == 7
    assert not hasattr(got, "old")
    same_state(got, want)


def test_models_without_arrays():
    # Layers share shapes: of arguments, and of parameters that were never made.
    model = nnx.eval_shape(lambda: MLP(nnx.Rngs(0)))
    assert taps_of(model, jax.ShapeDtypeStruct((6, 3), jnp.float32)) == TAPS


def test_taps_leave_the_module_alone():
    model = Noisy(nnx.Rngs(0))
    model.train()
    before = nnx.clone(model)
    taps_of(model, X)
    same_state(model, before)


def test_methods():
    class Encoder(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 2, rngs=rngs)

        def encode(self, x):
            return self.dense(x)

    model = Encoder(nnx.Rngs(0))
    function = lambda model, x: model.encode(x)  # noqa: E731
    ways = ["encode", model.encode, Encoder.encode, function]
    taps = [taps_of(model, X, method=way) for way in ways]
    assert all(each == taps[0] for each in taps)
    assert [layer.key for layer in taps[0].layers] == ["dense"]
    # A module below it is a method as well.
    assert [layer.key for layer in taps_of(MODEL, X, method="hidden").layers] == [
        "hidden"
    ]


def test_what_is_a_parameter():
    wrt = nnx.All(nnx.Param, nnx.PathContains("out"))
    taps = taps_of(MODEL, X, wrt=wrt)
    assert [layer.key for layer in taps.layers] == ["out"]
    check(taps, mean_square, MODEL, X, wrt=wrt)


def test_lora():
    base = nnx.Linear(3, 4, rngs=nnx.Rngs(1))
    model = nnx.LoRA(3, 2, 4, base_module=base, rngs=nnx.Rngs(0))
    model.lora_b[...] = normal(5, 2, 4)
    taps = taps_of(model, X, wrt=nnx.LoRAParam)
    # The frozen base is a layer of the oracle, but of no statistic.
    _, _, stats, _ = check(
        taps, mean_square, model, X, wrt=nnx.LoRAParam, statistics=False
    )
    check_gram(stats["lora_a"], X)
    check_gram(stats["lora_b"], X @ model.lora_a[...])
    tx = lbo.lnb(0.1, taps)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    collect = lbo.nnx.value_and_grad(mean_square, taps, wrt=nnx.LoRAParam)
    kernel, losses = base.kernel[...], []
    for _ in range(3):
        loss, grads, stats = collect(model, X)
        optimizer.update(model, grads, stats=stats)
        losses.append(loss)
    assert losses[2] < losses[1] < losses[0]
    np.testing.assert_array_equal(base.kernel[...], kernel)


def dictionary(model):
    """Returns the same network as a function of a dictionary of arrays."""

    def forward(params, x):
        hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return hidden @ params["out"]["kernel"] + params["out"]["bias"]

    def loss_fn(params, x):
        return jnp.mean(jnp.square(forward(params, x)))

    params = {
        name: {"kernel": each.kernel[...], "bias": each.bias[...]}
        for name, each in (("hidden", model.hidden), ("out", model.out))
    }
    return params, forward, loss_fn


TRANSFORMS = {
    "lnb": lambda taps: lbo.lnb(0.1, taps),
    "whiten": lambda taps: lbo.whiten(optax.adam(1e-2), taps),
    "chain": lambda taps: optax.chain(
        optax.clip_by_global_norm(0.1), lbo.lnb(0.1, taps, lbo.Cholesky(every=2))
    ),
}


def trained_dictionary(name, steps=4):
    params, forward, loss_fn = dictionary(MODEL)
    taps = lbo.taps(forward, params, X, statistic="gram")
    tx = TRANSFORMS[name](taps)
    state = tx.init(params)
    for _ in range(steps):
        _, grads, stats = lbo.value_and_grad(loss_fn, taps)(params, X)
        updates, state = tx.update(grads, state, params, stats=stats)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", TRANSFORMS)
def test_optimizer(name):
    model = nnx.clone(MODEL)
    optimizer = nnx.Optimizer(model, TRANSFORMS[name](TAPS), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads, stats = lbo.nnx.value_and_grad(mean_square, TAPS)(model, x)
        optimizer.update(model, grads, stats=stats)
        return loss

    for _ in range(4):
        step(model, optimizer, X)
    same_tree(dictionary(model)[0], trained_dictionary(name))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_split_module(name, whole):
    graphdef, params = nnx.split(MODEL, nnx.Param)
    tx = TRANSFORMS[name](TAPS)
    state = tx.init(params)

    def loss_fn(graphdef, params, x):
        return mean_square(nnx.merge(graphdef, params), x)

    @jax.jit
    def step(params, state, x):
        if whole:
            collect = lbo.nnx.value_and_grad(loss_fn, TAPS)
            loss, grads, stats = collect(graphdef, params, x)
        else:
            bound = lambda params, x: loss_fn(graphdef, params, x)  # noqa: E731
            loss, grads, stats = lbo.nnx.value_and_grad(bound, TAPS)(params, x)
        updates, state = tx.update(grads, state, params, stats=stats)
        return optax.apply_updates(params, updates), state, loss

    for _ in range(4):
        params, state, _ = step(params, state, X)
    model = nnx.merge(graphdef, params)
    same_tree(dictionary(model)[0], trained_dictionary(name))


def test_split_module_with_averages():
    model = Noisy(nnx.Rngs(0))
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(graphdef, params, rest, x):
        model = nnx.merge(graphdef, params, rest, copy=True)
        return mean_square(model, x), nnx.state(model, nnx.Not(nnx.Param))

    collect = lbo.nnx.value_and_grad(loss_fn, taps_of(model, X), has_aux=True)
    (_, aux), grads, stats = jax.jit(collect)(graphdef, params, rest, X)
    want = nnx.clone(model)
    _, want_grads = nnx.value_and_grad(mean_square)(want, X)
    same_tree(grads, want_grads)
    same_tree(raw(aux), raw(nnx.state(want, nnx.Not(nnx.Param))))
    check_gram(stats["a"], X)


def test_update_by_hand():
    model = nnx.clone(MODEL)
    tx = lbo.lnb(0.1, TAPS)
    state = tx.init(nnx.state(model, nnx.Param))
    for _ in range(4):
        params = nnx.state(model, nnx.Param)
        _, grads, stats = lbo.nnx.value_and_grad(mean_square, TAPS)(model, X)
        updates, state = tx.update(grads, state, params, stats=stats)
        nnx.update(model, optax.apply_updates(params, updates))
    same_tree(dictionary(model)[0], trained_dictionary("lnb"))


def is_hidden(path, *_):
    return "hidden" in jax.tree_util.keystr(path)


@pytest.mark.parametrize("split", [optax.partition, optax.multi_transform])
def test_partition(split):
    """The hidden layer steps as it does alone, the other one as with Adam."""
    taps, model = TAPS.filter(exclude="out"), nnx.clone(MODEL)

    def labels(params):
        return jax.tree.map_with_path(
            lambda path, _: "lnb" if is_hidden(path) else "adam", params
        )

    tx = split({"lnb": lbo.lnb(0.1, taps), "adam": optax.adam(0.1)}, labels)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    _, grads, stats = lbo.nnx.value_and_grad(mean_square, taps)(model, X)
    optimizer.update(model, grads, stats=stats)
    alone = lbo.lnb(0.1, taps)
    params = {"hidden": nnx.to_pure_dict(nnx.state(MODEL.hidden))}
    own = {"hidden": nnx.to_pure_dict(grads)["hidden"]}
    updates, _ = alone.update(own, alone.init(params), params, stats=stats)
    same_tree(
        nnx.to_pure_dict(nnx.state(model.hidden)),
        optax.apply_updates(params, updates)["hidden"],
    )
    # Adam's first step is the sign of the gradient.
    moved = model.out.kernel[...] - MODEL.out.kernel[...]
    np.testing.assert_allclose(moved, -0.1 * np.sign(grads["out"]["kernel"][...]), 1e-4)


def test_masked():
    taps, model = TAPS.filter(exclude="out"), nnx.clone(MODEL)

    def mask(params):
        return jax.tree.map_with_path(is_hidden, params)

    frozen = optax.masked(
        optax.set_to_zero(), lambda p: jax.tree.map(jnp.logical_not, mask(p))
    )
    tx = optax.chain(optax.masked(lbo.lnb(0.1, taps), mask), frozen)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    _, grads, stats = lbo.nnx.value_and_grad(mean_square, taps)(model, X)
    optimizer.update(model, grads, stats=stats)
    same_state(model.out, MODEL.out)
    assert not np.allclose(model.hidden.kernel[...], MODEL.hidden.kernel[...])


def test_micro_batches():
    whole, parts = nnx.clone(MODEL), nnx.clone(MODEL)
    for model, k in ((whole, 1), (parts, 2)):
        tx = lbo.lnb(0.1, TAPS)
        tx = tx if k == 1 else lbo.multi_steps(tx, TAPS, k)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for i in range(k):
            collect = lbo.nnx.value_and_grad(mean_square, TAPS)
            _, grads, stats = collect(model, X[i::k])
            optimizer.update(model, grads, stats=stats)
    same_state(parts, whole)


@pytest.mark.parametrize("jit", [True, False])
def test_padding(jit):
    mask = jnp.arange(6) < 4

    def loss_fn(model, x, mask):
        with lbo.only_rows(mask):
            y = model(x)
        return jnp.mean(jnp.square(y), where=mask[:, None])

    collect = lbo.nnx.value_and_grad(loss_fn, TAPS)
    _, grads, stats = (nnx.jit(collect) if jit else collect)(MODEL, X, mask)
    same_tree(grads, nnx.value_and_grad(mean_square)(MODEL, X[:4])[1])
    check_gram(stats["hidden"], X[:4])
    check_gram(stats["out"], jnp.tanh(MODEL.hidden(X[:4])))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_floats(dtype):
    model = nnx.Linear(3, 2, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    x = X.astype(dtype)
    taps = taps_of(model, x)
    collect = lbo.nnx.value_and_grad(mean_square, taps)
    loss, grads, stats = collect(model, x)
    same_tree((loss, grads), nnx.value_and_grad(mean_square)(model, x))
    assert grads["kernel"].dtype == dtype
    assert stats[""].outer.dtype == jnp.float32
    check_gram(stats[""], x)


def test_double_precision():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (6, 3), "float64")
        model = nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        collect = lbo.nnx.value_and_grad(mean_square, taps_of(model, x))
        loss, grads, stats = collect(model, x)
        want = nnx.value_and_grad(mean_square)(model, x)
        same_tree((loss, grads), want, {"rtol": 1e-12})
        assert stats[""].outer.dtype == jnp.float64
        np.testing.assert_allclose(stats[""].outer[0], x.T @ x, rtol=1e-12)


def test_threads():
    """Two threads trace models of different sizes at once."""

    def one(i):
        x = normal(i, 3 + i % 4, 3)
        model = MLP(nnx.Rngs(i), width=3 + i % 3)
        taps = taps_of(model, x)
        _, _, stats = lbo.nnx.value_and_grad(mean_square, taps)(model, x)
        check_gram(stats["hidden"], x)
        check_gram(stats["out"], jnp.tanh(model.hidden(x)))
        return True

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(one, range(40)))


def test_without_graph():
    if not hasattr(nnx, "set_graph_mode"):
        pytest.skip("this Flax has graphs only")
    with nnx.set_graph_mode(False):
        model = Noisy(nnx.Rngs(0))
        model.train()
        taps = taps_of(model, X)
        want = nnx.clone(model)
        optimizer = nnx.Optimizer(model, lbo.lnb(0.1, taps), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer, x):
            loss, grads, stats = lbo.nnx.value_and_grad(mean_square, taps)(model, x)
            optimizer.update(model, grads, stats=stats)
            return loss, grads, stats

        loss, grads, stats = step(model, optimizer, X)
    # With trees alone, it differentiates all that is in a module, counts included.
    same_tree((loss, grads), nnx.value_and_grad(mean_square)(want, X))
    check_gram(stats["a"], X)
    others = nnx.Not(nnx.Param)
    same_tree(raw(nnx.state(model, others)), raw(nnx.state(want, others)))


def through_orbax(tree, like, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, like)


def through_pickle(tree, like, path):
    del like
    path.write_bytes(pickle.dumps(jax.device_get(tree)))
    return pickle.loads(path.read_bytes())


@pytest.mark.parametrize("way", [through_orbax, through_pickle])
def test_checkpoint(way, tmp_path):
    graphdef, params = nnx.split(MODEL, nnx.Param)
    tx = TRANSFORMS["chain"](TAPS)

    @jax.jit
    def step(params, state):
        loss_fn = lambda params: mean_square(nnx.merge(graphdef, params), X)  # noqa: E731
        _, grads, stats = lbo.nnx.value_and_grad(loss_fn, TAPS)(params)
        updates, state = tx.update(grads, state, params, stats=stats)
        return optax.apply_updates(params, updates), state

    half = step(*step(params, tx.init(params)))
    restored = way(half, (params, tx.init(params)), tmp_path / "checkpoint")
    same_tree(step(*restored), step(*half), {"rtol": 0})


def test_sharded_model_and_batch():
    env = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')}"
        " --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "NPROC": "16",  # devices that wait for each other need threads of their own
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0",
    }
    command = [sys.executable, "-m", "tests.nnx_sharded"]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

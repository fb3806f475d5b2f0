"""Whatever a loss does with its parameters, gradients and statistics are right.

Expected statistics are those of inputs that are written down or recomputed by hand; the
expected gradient is that of the loss without taps.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from flax.training.train_state import TrainState

import linboost_optax as lbo
from linboost_optax import linen


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def initial(model, x):
    return model.init(jax.random.key(7), x)["params"]


X = normal(0, 6, 3)


class MLP(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="out")(jnp.tanh(nn.Dense(self.width, name="hidden")(x)))


MODEL = MLP()
PARAMS = initial(MODEL, X)
TAPS = linen.taps(MODEL, X, statistic="gram")


def gram(x):
    """What the Gram statistic of rows is: count, sum and sum of outer products."""
    rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return len(rows), rows.sum(0), rows.T @ rows


def check_gram(stats, x, rtol=1e-5):
    count, total, outer = gram(x)
    np.testing.assert_allclose(stats.count, [count], rtol=1e-6)
    np.testing.assert_allclose(stats.sum[0], total, rtol=rtol, atol=1e-5)
    np.testing.assert_allclose(stats.outer[0], outer, rtol=rtol, atol=1e-4)


def same(got, want, rtol=0.0):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def affine(params, x):
    return np.asarray(x) @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


def hidden_of(params, x):
    return np.tanh(affine(params["hidden"], x))


def mean_square(params, x):
    return jnp.mean(MODEL.apply({"params": params}, x) ** 2)


KEY = jax.random.key(11)


def dropped(params):
    """Drops half of every array, whatever it is."""
    return jax.tree.map(
        lambda p: jnp.where(jax.random.bernoulli(KEY, 0.5, p.shape), p, 0 * p), params
    )


def noisy(params):
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), params)


def averaged(params):
    return jax.tree.map(lambda p, old: 0.9 * p + 0.1 * old, params, PARAMS)


def clipped(params):
    return jax.tree.map(lambda p: jnp.clip(p, -0.5, 0.5), params)


def through_jit(params):
    return jax.jit(lambda p: jax.tree.map(lambda leaf: 2 * leaf, p))(params)


def through_loops(params):
    def body(p, _):
        return jax.tree.map(lambda leaf: 0.9 * leaf, p), None

    shrunk, _ = jax.lax.scan(body, params, None, length=2)
    return jax.lax.fori_loop(0, 2, lambda _, p: body(p, None)[0], shrunk)


def one_branch(params):
    return jax.lax.cond(jnp.sum(X) < 0, dropped, noisy, params)


CHANGES = {
    f.__name__: f
    for f in (
        dropped,
        noisy,
        averaged,
        clipped,
        through_jit,
        through_loops,
        one_branch,
        freeze,
    )
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", CHANGES)
def test_parameters_changed_leaf_by_leaf(name, jit):
    def loss(params, x):
        return mean_square(CHANGES[name](params), x)

    step = linen.value_and_grad(loss, TAPS)
    value, grads, stats = (jax.jit(step) if jit else step)(PARAMS, X)
    want = jax.value_and_grad(loss)
    same((value, grads), (jax.jit(want) if jit else want)(PARAMS, X), 1e-6)
    check_gram(stats["hidden"], X)
    check_gram(stats["out"], hidden_of(CHANGES[name](PARAMS), X))


@pytest.mark.lenient  # the cell's carry is float32
def test_parameters_cast_under_a_recurrent_cell():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.RNN(nn.GRUCell(4))(x))

    model, x = Net(), normal(1, 2, 5, 3)
    params = initial(model, x)

    def loss(params, x):
        narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        y = model.apply({"params": narrow}, x.astype(jnp.bfloat16))
        return jnp.mean(y.astype(jnp.float32) ** 2)

    taps = linen.taps(model, x, statistic="moments")
    value, grads, stats = linen.value_and_grad(loss, taps)(params, x)
    # The loop is compiled with its taps: sums of its body may round otherwise.
    same((value, grads), jax.value_and_grad(loss)(params, x), 1e-6)
    rounded = np.asarray(x.astype(jnp.bfloat16), np.float64).reshape(-1, 3)
    name = next(each.stats_key for each in taps.layers if each.path[-1] == "in")
    assert stats[name].sum.dtype == jnp.float32
    np.testing.assert_allclose(stats[name].count, [10])
    np.testing.assert_allclose(stats[name].sum_sq[0], (rounded**2).sum(0), rtol=1e-5)


def test_a_penalty_and_an_anchor_see_the_parameters_alone():
    seen = []

    def loss(params, x):
        seen.append(jax.tree.structure(params))
        far = optax.tree.norm(optax.tree.sub(params, PARAMS))
        norms = sum(jnp.sqrt(jnp.sum(p**2) + 1) for p in jax.tree.leaves(params))
        return mean_square(params, x) + far**2 + norms

    value, grads, stats = linen.value_and_grad(loss, TAPS)(PARAMS, X)
    same((value, grads), jax.value_and_grad(loss)(PARAMS, X), 1e-6)
    assert set(seen) == {jax.tree.structure(PARAMS)}
    check_gram(stats["hidden"], X)


@pytest.mark.parametrize("mutable", [True, ["params"], ["intermediates"]])
def test_nothing_of_ours_is_returned(mutable):
    def loss(params, x):
        y, variables = MODEL.apply({"params": params}, x, mutable=mutable)
        return jnp.mean(y**2), (params, variables)

    (_, aux), grads, stats = linen.value_and_grad(loss, TAPS, has_aux=True)(PARAMS, X)
    _, want = loss(PARAMS, X)
    assert jax.tree.structure(aux) == jax.tree.structure(want)
    check_gram(stats["out"], hidden_of(PARAMS, X))


def test_parameters_that_a_model_looks_at_while_it_is_called():
    class Rescaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(2, name="out")(x)
            self.sow("penalty", "all", jnp.sum(y))
            return y

    model = Rescaled()
    params = initial(model, X)

    def loss(params, x):
        bound = model.bind({"params": params}, mutable=["penalty"])
        y = bound(x) + bound(2 * x)
        left = dict(bound.variables["params"]["out"])
        return jnp.sum(y**2), left

    taps = linen.taps(model, X, statistic="gram")
    (_, left), _, stats = linen.value_and_grad(loss, taps, has_aux=True)(params, X)
    assert set(left) == {"kernel", "bias"}
    check_gram(stats["out"], np.concatenate([X, 2 * X]))


@pytest.mark.parametrize("where", ["loss", "outside", "module"])
def test_an_interceptor_of_the_user_changes_an_input(where):
    def tenfold(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            return next_fun(10 * args[0], **kwargs)
        return next_fun(*args, **kwargs)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            if where == "module":
                with nn.intercept_methods(tenfold):
                    return nn.Dense(2, name="out")(x)
            return nn.Dense(2, name="out")(x)

    model = Net()
    params, taps = initial(model, X), linen.taps(model, X, statistic="gram")

    def loss(params, x):
        if where == "loss":
            with nn.intercept_methods(tenfold):
                return jnp.mean(model.apply({"params": params}, x) ** 2)
        return jnp.mean(model.apply({"params": params}, x) ** 2)

    step = linen.value_and_grad(loss, taps)
    if where == "outside":
        with nn.intercept_methods(tenfold):
            _, _, stats = step(params, X)
    else:
        _, _, stats = step(params, X)
    check_gram(stats["out"], 10 * X)


def test_an_interceptor_that_calls_the_method_itself():
    def short(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            return context.orig_method(3 * args[0])
        return next_fun(*args, **kwargs)

    def loss(params, x):
        with nn.intercept_methods(short):
            return mean_square(params, x)

    _, _, stats = linen.value_and_grad(loss, TAPS)(PARAMS, X)
    check_gram(stats["hidden"], 3 * X)


class Taught(nn.Module):
    """Calls a frozen model of its own kind, with variables of its own."""

    teacher: dict

    @nn.compact
    def __call__(self, x):
        y = MLP(name="student")(x)
        return y - MLP().apply({"params": self.teacher}, 5 * x)


def test_a_model_called_inside_a_module():
    teacher = initial(MODEL, 2 * X)
    model = Taught(teacher)
    params, taps = initial(model, X), linen.taps(model, X, statistic="gram")
    assert [layer.key for layer in taps.layers] == ["student/hidden", "student/out"]

    def loss(params, x):
        return jnp.mean(model.apply({"params": params}, x) ** 2)

    value, grads, stats = linen.value_and_grad(loss, taps)(params, X)
    same((value, grads), jax.value_and_grad(loss)(params, X))
    check_gram(stats["student/hidden"], X)
    check_gram(stats["student/out"], hidden_of(params["student"], X))


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_teacher_in_the_loss_of_the_same_shapes(jit):
    # A gradient flows through it: the student's output is its input.
    teacher = initial(nn.Dense(3), X)
    model = nn.Dense(3)
    student, taps = initial(model, 2 * X), linen.taps(nn.Dense(3), X, statistic="gram")

    def loss(params, x):
        y = model.apply({"params": params}, x)
        teach = jax.jit(model.apply) if jit else model.apply
        return jnp.mean(teach({"params": teacher}, y) ** 2)

    value, grads, stats = linen.value_and_grad(loss, taps)(student, X)
    same((value, grads), jax.value_and_grad(loss)(student, X), 1e-6)
    check_gram(stats[""], X)


@pytest.mark.parametrize("keep", [jax.jit, jax.checkpoint])
@pytest.mark.parametrize("first", ["student", "teacher"])
def test_one_kept_function_for_two_models(keep, first):
    model = nn.Dense(3)
    params, taps = initial(model, X), linen.taps(model, X, statistic="gram")
    other = initial(model, 2 * X)
    apply = keep(model.apply)

    def loss(params, x):
        both = [params, other] if first == "student" else [other, params]
        y, z = (apply({"params": each}, x) for each in both)
        return jnp.mean(y * z)

    for how in (lambda f: f, jax.jit):
        value, grads, stats = how(linen.value_and_grad(loss, taps))(params, X)
        same((value, grads), jax.value_and_grad(loss)(params, X), 1e-5)
        check_gram(stats[""], X)


def test_weights_tied_by_hand_through_a_foreign_call():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(3, name="layer")
            y = layer(x)
            return nn.Dense(3).apply(layer.variables, jnp.tanh(y))

    model = Tied()
    params, taps = initial(model, X), linen.taps(model, X, statistic="gram")
    _, _, stats = linen.value_and_grad(
        lambda p: jnp.mean(model.apply({"params": p}, X) ** 2), taps
    )(params)
    inner = np.tanh(affine(params["layer"], X))
    check_gram(stats["layer"], np.concatenate([X, inner]))


@pytest.mark.lenient  # Adam's powers of an integer count
@pytest.mark.parametrize("below", ["params", "variables"])
def test_two_models_in_one_dictionary(below):
    encoder, decoder = MLP(3), MLP(5)
    z = normal(3, 6, 2)
    # Two models of the same kind: their layers have the same names.
    both = {"enc": initial(encoder, X), "dec": initial(decoder, z)}
    if below == "variables":
        both = {name: {"params": params} for name, params in both.items()}
    taps = lbo.Taps.join(
        {
            "enc": linen.taps(encoder, X, statistic="gram"),
            "dec": linen.taps(decoder, z, statistic="gram"),
        }
    )

    def variables(params, name):
        return params[name] if below == "variables" else {"params": params[name]}

    def loss(params, x):
        z = encoder.apply(variables(params, "enc"), x)
        return jnp.mean((decoder.apply(variables(params, "dec"), z)) ** 2)

    value, grads, stats = linen.value_and_grad(loss, taps)(both, X)
    same((value, grads), jax.value_and_grad(loss)(both, X))
    code = encoder.apply(variables(both, "enc"), X)
    check_gram(stats["enc/hidden"], X)
    check_gram(stats["dec/hidden"], code)
    for tx in (lbo.lnb(0.1, taps), lbo.whiten(optax.adam(0.01), taps)):
        updates, _ = tx.update(grads, tx.init(both), both, stats=stats)
        assert all(jnp.any(u != 0) for u in jax.tree.leaves(updates))


def test_a_model_called_by_its_parts():
    taps = linen.taps(MODEL, X, statistic="gram")

    def loss(params, x):
        h = jnp.tanh(nn.Dense(4).apply({"params": params["hidden"]}, x))
        return jnp.mean(nn.Dense(2).apply({"params": params["out"]}, h) ** 2)

    _, grads, stats = linen.value_and_grad(loss, taps)(PARAMS, X)
    same(grads, jax.grad(mean_square)(PARAMS, X), 1e-6)
    check_gram(stats["out"], hidden_of(PARAMS, X))


@pytest.mark.parametrize("outer", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("inner", ["jit", "checkpoint", "vmap", "scan", "grad"])
def test_a_model_called_inside_a_transformation(inner, outer):
    def apply(params, x):
        return MODEL.apply({"params": params}, x)

    calls = {
        "jit": jax.jit(apply),
        "checkpoint": jax.checkpoint(apply),
        "vmap": jax.vmap(apply, (None, 0)),
        "scan": lambda p, x: jax.lax.scan(lambda c, row: (c, apply(p, row)), 0, x)[1],
        "grad": lambda p, x: jax.grad(lambda x: jnp.sum(apply(p, x) ** 2))(x),
    }

    def loss(params, x):
        return jnp.mean(calls[inner](params, x) ** 2)

    step = linen.value_and_grad(loss, TAPS)
    step = jax.jit(step) if outer else step
    for x in (X, 2 * X):  # the second time from JAX's caches, where there are any
        value, grads, stats = step(PARAMS, x)
        same((value, grads), jax.value_and_grad(loss)(PARAMS, x), 1e-5)
        if inner == "grad":  # the derivative of the last layer does not need its input
            assert stats["hidden"].count > 0
            continue
        check_gram(stats["hidden"], x)
        check_gram(stats["out"], hidden_of(PARAMS, x), 1e-4)
    untapped = calls[inner](PARAMS, X)  # and nothing of ours stays in them
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in [untapped])


def test_a_model_compiled_by_flax_is_traced_once():
    traced = []

    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            traced.append(x)
            return nn.Dense(2, name="layer")(x)

    compiled = nn.jit(Inner)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return compiled(name="inner")(x)

    model = Net()
    params, taps = initial(model, X), linen.taps(model, X, statistic="gram")
    step = linen.value_and_grad(
        lambda p, x: jnp.mean(model.apply({"params": p}, x) ** 2), taps
    )
    counts = []
    for x in (X, 2 * X, 3 * X):
        _, _, stats = step(params, x)
        check_gram(stats["inner/layer"], x)
        counts.append(len(traced))
    assert counts[0] == counts[1] == counts[2]


def test_what_a_loss_calls_is_not_traced_again_at_every_call():
    traced = []

    @jax.jit
    def square(y):
        traced.append(y)
        return y**2

    def loss(params, x):
        return jnp.mean(square(MODEL.apply({"params": params}, x)))

    counts = []
    for x in (X, 2 * X, 3 * X):
        linen.value_and_grad(loss, TAPS)(PARAMS, x)
        counts.append(len(traced))
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize(
    "look",
    [bool, float, np.asarray, lambda x: X[int(x)], lambda x: X[x < X]],
    ids=["bool", "float", "numpy", "index", "mask"],
)
def test_a_loss_that_looks_at_numbers(look):
    def loss(params, x):
        value = mean_square(params, x)
        return value if np.all(look(value)) else 2 * value

    with pytest.raises(TypeError, match=r"`loss` looks at numbers.*jax\.lax\.cond"):
        linen.value_and_grad(loss, TAPS)(PARAMS, X)

    def branches(params, x):
        value = mean_square(params, x)
        return jax.lax.cond(value > 0, lambda v: v, lambda v: 2 * v, value)

    _, grads, stats = linen.value_and_grad(branches, TAPS)(PARAMS, X)
    same(grads, jax.grad(mean_square)(PARAMS, X), 1e-6)
    check_gram(stats["hidden"], X)


def test_gradients_with_taps_inside_a_loss_with_taps():
    critic = nn.Dense(1)
    weights = initial(critic, normal(1, 6, 2))
    taps = linen.taps(critic, normal(1, 6, 2), statistic="gram")

    def loss(params, x):
        y = MODEL.apply({"params": params}, x)

        def inner(w):
            return jnp.mean(critic.apply({"params": w}, y) ** 2)

        value, _, inside = linen.value_and_grad(inner, taps)(weights)
        return value, inside

    step = linen.value_and_grad(loss, TAPS, has_aux=True)
    (_, inside), _, stats = step(PARAMS, X)
    check_gram(stats["hidden"], X)
    check_gram(stats["out"], hidden_of(PARAMS, X))
    check_gram(inside[""], MODEL.apply({"params": PARAMS}, X))


class HandTied(nn.Module):
    read: str

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 3, name="embed")
        h = nn.Dense(3, name="mix")(embed(tokens))
        if self.read == "product":
            return h @ embed.embedding.T
        if self.read == "rows":
            return h + embed.embedding[tokens % 2]
        return h + 0 * jnp.sum(embed.embedding**2)


TOKENS = jnp.array([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("read", ["product", "rows", "penalty"])
def test_a_kernel_read_by_the_model_outside_of_its_layer(read):
    """Whoever multiplies a kernel, it is measured: as output layer, as more rows."""
    model = HandTied(read)
    params, taps = initial(model, TOKENS), linen.taps(model, TOKENS, statistic="gram")
    assert {layer.key for layer in taps.layers} == {"embed", "mix"}
    _, _, stats = linen.value_and_grad(
        lambda p: jnp.mean(model.apply({"params": p}, TOKENS) ** 2), taps
    )(params)
    got, tokens = stats["embed"], np.asarray(TOKENS).reshape(-1)
    counts = np.bincount(tokens, minlength=7)
    if read == "product":
        hidden = affine(params["mix"], np.asarray(params["embed"]["embedding"])[tokens])
        check_gram(got.attend, hidden)
        got = got.lookup
    if read == "rows":
        counts += np.bincount(tokens % 2, minlength=7)
    np.testing.assert_allclose(got.sum[0], counts)


def test_a_kernel_read_by_the_loss_outside_of_its_layer():
    class Body(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Dense(3, name="mix")(nn.Embed(7, 3, name="embed")(tokens))

    model = Body()
    params, taps = initial(model, TOKENS), linen.taps(model, TOKENS)

    def loss(params, tokens, head):
        h = model.apply({"params": params}, tokens)
        return jnp.mean((h @ head(params)["embed"]["embedding"].T) ** 2)

    def by_hand(params, tokens):
        return loss(params, tokens, lambda p: p)

    with pytest.raises(
        ValueError, match=r"'embed': the loss multiplies its kernel .*exc"
    ):
        linen.value_and_grad(by_hand, taps)(params, TOKENS)
    # Both ways out that the error names.
    rest = taps.filter(exclude="embed")
    _, grads, stats = linen.value_and_grad(by_hand, rest)(params, TOKENS)
    assert set(stats) == {"mix"}
    same(grads, jax.grad(by_hand)(params, TOKENS))
    _, grads, stats = linen.value_and_grad(loss, taps)(
        params, TOKENS, linen.without_taps
    )
    same(grads, jax.grad(by_hand)(params, TOKENS))
    np.testing.assert_array_equal(stats["embed"].count, [6])


def test_penalties_are_no_use_of_a_kernel():
    def loss(params, x):
        kernel = params["out"]["kernel"]
        penalty = jnp.sum((kernel.T @ kernel - jnp.eye(2)) ** 2)
        return mean_square(params, x) + penalty + jnp.vdot(kernel, kernel)

    _, grads, stats = linen.value_and_grad(loss, TAPS)(PARAMS, X)
    same(grads, jax.grad(loss)(PARAMS, X))
    check_gram(stats["out"], hidden_of(PARAMS, X))


def test_uses_without_taps_add_nothing():
    def loss(params, x):
        second = MODEL.apply({"params": linen.without_taps(params)}, 3 * x)
        return mean_square(params, x) + jnp.mean(second)

    for step in (
        linen.value_and_grad(loss, TAPS),
        jax.jit(linen.value_and_grad(loss, TAPS)),
    ):
        _, grads, stats = step(PARAMS, X)
        same(grads, jax.grad(loss)(PARAMS, X), 1e-6)
        check_gram(stats["hidden"], X)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        q, k, v = (nn.Dense(4, name=name)(x) for name in ("query", "key", "value"))
        return nn.Dense(2, name="out")(q * k + v)


def test_filtering_out_a_layer_that_measured_for_others():
    model = Attention()
    params, taps = initial(model, X), linen.taps(model, X, statistic="gram")
    sources = {layer.key: layer.stats_key for layer in taps.layers}
    assert sources["query"] == sources["value"] == sources["key"] == "query"

    rest = taps.filter(exclude="query")
    sources = {layer.key: layer.stats_key for layer in rest.layers}
    assert sources == {"key": "key", "value": "key", "out": "out"}
    reasons = {p.path: p.reason for p in rest.plain}
    assert reasons == {"query/kernel": "left out", "query/bias": "left out"}

    def loss(params, x):
        return jnp.mean(model.apply({"params": params}, x) ** 2)

    _, grads, stats = linen.value_and_grad(loss, rest)(params, X)
    same(grads, jax.grad(loss)(params, X))
    assert set(stats) == {"key", "out"}
    check_gram(stats["key"], X)
    tx = lbo.scale_by_lnb(rest, lbo.Cholesky(), min_norm=1e6)
    updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    # The left-out layer keeps its plain gradient, up to the scale of all.
    plain = jax.tree.map(lambda g: g / 1e6, grads["query"])
    same(updates["query"], plain, 1e-6)


def test_the_same_choice_when_taps_are_made():
    want = linen.taps(Attention(), X).filter(exclude=("k*", "out"))
    got = linen.taps(Attention(), X, exclude=("k*", "out"))
    assert got.layers == want.layers
    assert {p.path for p in got.plain} == {p.path for p in want.plain}
    kept = linen.taps(Attention(), X).filter(lambda layer: layer.kind.outputs == 4)
    assert {layer.key for layer in kept.layers} == {"query", "key", "value"}


def test_wrong_choices():
    taps = linen.taps(Attention(), X)
    with pytest.raises(ValueError, match=r"`exclude` must name a layer, got 'heads'"):
        taps.filter(exclude="heads")
    with pytest.raises(TypeError, match="`exclude` must be names of layers, got 3"):
        taps.filter(exclude=[3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="`keep` must map a layer to whether"):
        taps.filter("key")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`taps` must be a Taps, got dict"):
        lbo.Taps.join({"enc": {}})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"no layer that can be tapped.*left out"):
        linen.taps(MODEL, X, exclude="*")


def test_a_stack_and_a_layer_beside_it_with_one_input():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.vmap(
                nn.Dense,
                in_axes=None,
                out_axes=0,
                axis_size=2,
                variable_axes={"params": 0},
                split_rngs={"params": True},
            )
            return nn.Dense(4, name="alone")(x) + jnp.sum(stack(4, name="two")(x), 0)

    model = Net()
    params, taps = initial(model, X), linen.taps(model, X, statistic="gram")
    _, _, stats = linen.value_and_grad(
        lambda p: jnp.mean(model.apply({"params": p}, X) ** 2), taps
    )(params)
    check_gram(stats["alone"], X)
    # Its two kernels have this very input, too: one matrix of eight outputs.
    source = {layer.key: layer.stats_key for layer in taps.layers}
    assert source == {"alone": "alone", "two": "alone"}


def test_train_state_and_inference_are_untouched():
    state = TrainState.create(
        apply_fn=MODEL.apply, params=PARAMS, tx=lbo.lnb(0.1, TAPS)
    )
    _, grads, stats = linen.value_and_grad(mean_square, TAPS)(state.params, X)
    updates, _ = state.tx.update(grads, state.opt_state, state.params, stats=stats)
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize("optimizer", ["lnb", "whiten", "polar"])
def test_nothing_is_added_to_inference(optimizer):
    """The forward program of trained parameters is the text that it always was."""
    build = {
        "lnb": lambda taps: lbo.lnb(0.1, taps),
        "whiten": lambda taps: lbo.whiten(optax.sgd(0.1), taps),
        "polar": lambda taps: lbo.polar(0.1, taps),
    }[optimizer]
    model = MLP(width=5)
    params = initial(model, X)

    def forward(params):
        """The program as it is lowered, and the instructions that it compiles to."""
        lowered = jax.jit(lambda p, x: model.apply({"params": p}, x)).lower(params, X)
        lines = re.findall(r"^(?:%|ENTRY|  ).*", lowered.compile().as_text(), re.M)
        # A frame is the line of this test that asked for the program.
        return lowered.as_text(), [re.sub(r"stack_frame_id=\d+", "", x) for x in lines]

    before = forward(params)

    taps = linen.taps(model, X)
    tx = build(taps)
    loss = linen.value_and_grad(
        lambda p, x: jnp.mean(model.apply({"params": p}, x) ** 2), taps
    )
    _, grads, stats = loss(params, X)
    with jax.numpy_dtype_promotion("standard"):  # for Optax's Adam, inside `polar`
        updates, _ = tx.update(grads, tx.init(params), params, stats=stats)
    trained = optax.apply_updates(params, updates)

    assert not np.array_equal(trained["out"]["kernel"], params["out"]["kernel"])
    assert jax.tree.map(jnp.shape, trained) == jax.tree.map(jnp.shape, params)
    program, instructions = forward(trained)
    assert (program, instructions) == before
    assert program.count("dot_general") == 2
    assert instructions


def step_of(loss, taps, jit):
    step = linen.value_and_grad(loss, taps)
    return jax.jit(step) if jit else step


BOTH = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])


@BOTH
@pytest.mark.parametrize("detached", ["first", "second"])
def test_one_input_of_two_calls_of_which_one_has_no_gradient(detached, jit):
    def loss(params, x):
        one, other = (MODEL.apply({"params": params}, x) for _ in range(2))
        one = jax.lax.stop_gradient(one)
        pair = (one, other) if detached == "first" else (other, one)
        return jnp.mean((pair[0] - 2 * pair[1]) ** 2)

    _, grads, stats = step_of(loss, TAPS, jit)(PARAMS, X)
    same(grads, jax.grad(loss)(PARAMS, X), 1e-6)
    check_gram(stats["hidden"], X)
    check_gram(stats["out"], hidden_of(PARAMS, X))


@BOTH
def test_an_input_shared_with_a_layer_that_the_loss_leaves_out(jit):
    class Heads(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="policy")(x), nn.Dense(1, name="value")(x)

    model = Heads()
    params, taps = initial(model, X), linen.taps(model, X, statistic="gram")
    assert {layer.stats_key for layer in taps.layers} == {"policy"}
    step = step_of(
        lambda p, x: jnp.mean(model.apply({"params": p}, x)[1] ** 2), taps, jit
    )
    check_gram(step(params, X)[2]["policy"], X)


@BOTH
def test_a_model_bound_outside_of_the_loss(jit):
    class Setup(nn.Module):
        def setup(self):
            self.layer = nn.Dense(3)

        def __call__(self, x):
            return self.layer(x)

    model = Setup()
    params, taps = initial(model, X), linen.taps(model, X, statistic="gram")
    teacher = model.bind({"params": initial(model, 2 * X)})
    before = teacher(X)

    def loss(params, x):
        return jnp.mean((model.apply({"params": params}, x) - teacher(x)) ** 2)

    for _ in range(2):
        _, grads, stats = step_of(loss, taps, jit)(params, X)
        same(grads, jax.grad(loss)(params, X), 1e-6)
        check_gram(stats["layer"], X)
    same(teacher(X), before)
    assert set(teacher.variables["params"]["layer"]) == {"kernel", "bias"}


def test_one_compiled_model_in_the_losses_of_two():
    critic, source = nn.Dense(1), nn.Dense(2)
    z = normal(5, 6, 3)
    p_source, p_critic = initial(source, z), initial(critic, normal(6, 6, 2))
    t_source = linen.taps(source, z, statistic="gram")
    t_critic = linen.taps(critic, normal(6, 6, 2), statistic="gram")
    make = jax.jit(source.apply)  # its trace is kept from one loss to the next

    def critic_loss(params, z):
        return jnp.mean(critic.apply({"params": params}, make({"params": p_source}, z)))

    def source_loss(params, z):
        return jnp.mean(make({"params": params}, z) ** 2)

    for _ in range(2):
        _, _, stats = linen.value_and_grad(critic_loss, t_critic)(p_critic, z)
        check_gram(stats[""], source.apply({"params": p_source}, z))
        _, _, stats = linen.value_and_grad(source_loss, t_source)(p_source, z)
        check_gram(stats[""], z)


@pytest.mark.parametrize("rule", ["vjp", "jvp"])
@BOTH
def test_a_model_inside_a_function_with_its_own_derivative(rule, jit):
    def apply(params, x):
        return MODEL.apply({"params": params}, x)

    if rule == "vjp":
        wrapped = jax.custom_vjp(apply)
        wrapped.defvjp(
            lambda p, x: jax.vjp(apply, p, x), lambda pullback, g: pullback(g)
        )
    else:
        wrapped = jax.custom_jvp(apply)
        wrapped.defjvp(lambda primals, tangents: jax.jvp(apply, primals, tangents))

    def loss(params, x):
        return jnp.mean(wrapped(params, x) ** 2)

    with pytest.raises(ValueError, match=r"inside a function with a derivative of its"):
        step_of(loss, TAPS, jit)(PARAMS, X)


def test_a_square_kernel_that_is_used_transposed_by_another_call():
    model = nn.Dense(3, use_bias=False)
    params, taps = initial(model, X), linen.taps(model, X, statistic="gram")

    def loss(params, x):
        code = model.apply({"params": params}, x)
        back = jax.tree.map(jnp.transpose, params)
        return jnp.mean((model.apply({"params": back}, code) - x) ** 2)

    with pytest.raises(
        ValueError, match=r"outside of the layer's own call .with its axes in anoth"
    ):
        linen.value_and_grad(loss, taps)(params, X)


def test_a_kernel_multiplied_with_an_argument_of_the_loss():
    def loss(params, x):
        return mean_square(params, x) + jnp.mean(x @ params["hidden"]["kernel"])

    with pytest.raises(ValueError, match=r"'hidden': the loss multiplies its kernel"):
        linen.value_and_grad(loss, TAPS)(PARAMS, X)


def test_inner_steps_that_are_mapped_over_tasks():
    tasks = normal(8, 4, 6, 3)

    def task_loss(params, support, query):
        inner = jax.grad(mean_square)(params, support)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, inner)
        return mean_square(moved, query)

    def loss(params, x):
        return jnp.mean(jax.vmap(task_loss, (None, 0, 0))(params, x, 3 * x))

    _, grads, stats = linen.value_and_grad(loss, TAPS)(PARAMS, tasks)
    same(grads, jax.grad(loss)(PARAMS, tasks), 1e-5)
    check_gram(stats["hidden"], np.concatenate([tasks, 3 * tasks]), 1e-4)


def test_taps_on_the_same_model_inside_a_loss_with_taps():
    def loss(params, x):
        _, grads, inside = linen.value_and_grad(mean_square, TAPS)(params, x)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        return mean_square(moved, 3 * x), inside

    (_, inside), _, stats = linen.value_and_grad(loss, TAPS, has_aux=True)(PARAMS, X)
    check_gram(inside["hidden"], X)
    check_gram(stats["hidden"], np.concatenate([X, 3 * X]))


def test_a_head_beside_a_tapped_embedding_of_its_shape():
    class Translator(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            h = nn.Embed(7, 3, name="source")(tokens)
            target = nn.Embed(7, 3, name="target")
            return target.attend(h + target(tokens))

    model = Translator()
    params, taps = initial(model, TOKENS), linen.taps(model, TOKENS)
    assert {layer.key: layer.kind.name for layer in taps.layers} == {
        "source": "Embed",
        "target": "Tied",
    }

    def loss(params, tokens):
        narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        y = model.apply({"params": narrow}, tokens)
        return jnp.mean(y.astype(jnp.float32) ** 2)

    _, _, stats = linen.value_and_grad(loss, taps)(params, TOKENS)
    np.testing.assert_array_equal(stats["source"].count, [6])
    np.testing.assert_array_equal(stats["target"].lookup.count, [6])
    np.testing.assert_array_equal(stats["target"].attend.count, [6])


@BOTH
def test_a_module_that_looks_at_its_own_parameters_and_their_cotangents(jit):
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(2, name="layer")
            y, pullback = nn.vjp(lambda layer, x: layer(x), layer, x)
            cotangents, _ = pullback(jnp.ones_like(y))
            norms = [jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(cotangents)]
            own = jax.tree.leaves(layer.variables["params"])
            return jnp.sum(y**2) + sum(norms) + sum(jnp.sum(jnp.exp(p)) for p in own)

    model = Own()
    params, taps = initial(model, X), linen.taps(model, X, statistic="gram")

    def loss(params, x):
        return model.apply({"params": params}, x)

    value, grads, stats = step_of(loss, taps, jit)(params, X)
    same((value, grads), jax.value_and_grad(loss)(params, X), 1e-6)
    check_gram(stats["layer"], X)

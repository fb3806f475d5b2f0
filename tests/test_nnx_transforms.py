"""NNX's layers, containers and transforms: statistics are those of every use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import linboost_optax as lbo
from tests.nnx_oracle import MLP, check, check_gram, mean_square, normal
from tests.oracle import same_tree

pytestmark = pytest.mark.lenient("layers of NNX promote implicitly")

X = normal(0, 6, 3)


def check_model(model, *args, loss_fn=mean_square, statistic="gram", **options):
    taps = lbo.nnx.taps(model, *args, statistic=statistic, **options)
    for jit in (True, False):
        _, _, stats, nodes = check(taps, loss_fn, model, *args, jit=jit)
    return taps, stats, nodes


def names(taps):
    return [layer.key for layer in taps.layers]


class Block(nnx.Module):
    def __init__(self, rngs, noisy=False):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.noisy = noisy
        if noisy:
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        y = jnp.tanh(self.dense(x))
        return x + (self.drop(self.norm(y)) if self.noisy else y)


def stacked(make, rngs, size=3, axis=0):
    """Returns modules stacked along an axis of their variables."""
    axes = nnx.StateAxes({nnx.Param: axis, ...: 0})
    split = nnx.split_rngs(splits=size)
    return split(nnx.vmap(make, in_axes=0, out_axes=axes))(rngs)


class Deep(nnx.Module):
    def __init__(self, rngs, remat=False, axis=0, noisy=False):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.blocks = stacked(lambda rngs: Block(rngs, noisy), rngs, axis=axis)
        self.remat, self.axis = remat, axis

    def __call__(self, x):
        def body(block, x):
            return block(x)

        axes = nnx.StateAxes({nnx.Param: self.axis, ...: 0})
        body = nnx.remat(body) if self.remat else body
        scan = nnx.scan(in_axes=(axes, nnx.Carry), out_axes=nnx.Carry)
        return scan(body)(self.blocks, self.first(x))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_scan_over_layers(remat, noisy):
    model = Deep(nnx.Rngs(0), remat, noisy=noisy)
    model.train()
    taps, stats, _ = check_model(model, X)
    assert taps.layers[0].stack == (3,)
    assert stats["blocks/dense"].count.tolist() == [[6], [6], [6]]


def by_layer(model, x):
    """Returns the inputs of every layer of a stack, by hand."""
    kernels = np.moveaxis(model.blocks.dense.kernel[...], model.axis, 0)
    biases = np.moveaxis(model.blocks.dense.bias[...], model.axis, 0)
    inputs = [np.asarray(model.first(x))]
    for kernel, bias in zip(kernels, biases):
        inputs.append(inputs[-1] + np.tanh(inputs[-1] @ kernel + bias))
    return np.stack(inputs[:-1])


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_stack_along_any_axis(axis, remat):
    model = Deep(nnx.Rngs(0), remat, axis)
    assert model.blocks.dense.kernel.shape == ((3, 4, 4) if axis == 0 else (4, 3, 4))
    taps = lbo.nnx.taps(model, X, statistic="gram")
    collect = lbo.nnx.value_and_grad(mean_square, taps)
    loss, grads, stats = nnx.jit(collect)(model, X)
    same_tree((loss, grads), nnx.jit(nnx.value_and_grad(mean_square))(model, X))
    for i, x in enumerate(by_layer(model, X)):
        check_gram(jax.tree.map(lambda leaf, i=i: leaf[i], stats["blocks/dense"]), x)
    optimizer = nnx.Optimizer(model, lbo.lnb(0.1, taps), wrt=nnx.Param)
    optimizer.update(model, grads, stats=stats)
    assert mean_square(model, X) < loss


def test_nested_scan():
    class Nested(nnx.Module):
        def __init__(self, rngs):
            self.blocks = stacked(lambda rngs: stacked(Block, rngs, 2), rngs, 3)

        def __call__(self, x):
            over = nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            inner = over(lambda block, x: block(x))
            return over(lambda blocks, x: inner(blocks, x))(self.blocks, x)

    taps, *_ = check_model(Nested(nnx.Rngs(0)), normal(0, 6, 4))
    assert taps.layers[0].stack == (3, 2)


def mapped(in_axes):
    return nnx.vmap(lambda model, x: model(x), in_axes=in_axes)


def members(stat):
    """Returns the statistics of a product with a batch axis, one by one."""
    return [
        stat._replace(sum=stat.sum[i, None], outer=stat.outer[i, None])
        for i in range(len(stat.outer))
    ]


@pytest.mark.parametrize("shared", [True, False])
def test_ensemble(shared):
    call = mapped((0, None) if shared else 0)

    def loss_fn(models, x):
        return jnp.mean(jnp.square(call(models, x)))

    models = stacked(MLP, nnx.Rngs(0), 4)
    x = X if shared else normal(3, 4, 6, 3)
    taps = lbo.nnx.taps(models, x, statistic="gram", method=call)
    loss, grads, stats = nnx.jit(lbo.nnx.value_and_grad(loss_fn, taps))(models, x)
    same_tree((loss, grads), nnx.jit(nnx.value_and_grad(loss_fn))(models, x))
    hidden = jnp.tanh(mapped((0, None) if shared else 0)(models.hidden, x))
    for stat, inputs in ((stats["hidden"], x), (stats["out"], hidden)):
        # Members that read one batch are heads of one layer.
        own = [inputs] if inputs is X else list(inputs)
        assert len(stat.outer) == len(own)
        for each, member in zip(members(stat), own):
            check_gram(each, member)


@pytest.mark.parametrize("wrap", ["vmap", "lax.map", "scan", "checkpoint"])
def test_jax_around_the_model(wrap):
    def loss_fn(model, x):
        each = {
            "vmap": jax.vmap(model),
            "lax.map": lambda x: jax.lax.map(model, x),
            "scan": lambda x: jax.lax.scan(lambda c, x: (c, model(x)), 0, x)[1],
            "checkpoint": jax.checkpoint(model),
        }
        return jnp.mean(jnp.square(each[wrap](x)))

    taps = lbo.nnx.taps(MLP(nnx.Rngs(0)), X, statistic="gram")
    _, _, stats, _ = check(taps, loss_fn, MLP(nnx.Rngs(0)), normal(1, 2, 6, 3))
    assert stats["hidden"].count == 12


def test_methods_that_are_transformed():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)

        @nnx.remat
        def once(self, x):
            return jnp.tanh(self.norm(self.dense(x)))

        @nnx.jit
        def __call__(self, x):
            return self.once(self.once(x))

    _, stats, _ = check_model(Twice(nnx.Rngs(0)), X)
    assert stats["dense"].count == 12


@pytest.mark.parametrize("sign", [1, -1])
def test_branches(sign):
    class Branching(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = (nnx.Linear(3, 3, rngs=rngs) for _ in range(2))
            self.norm = nnx.BatchNorm(3, rngs=rngs)

        def __call__(self, x):
            return nnx.cond(
                x[0, 0] > 0, lambda m, x: m.a(x), lambda m, x: m.norm(m.b(x)), self, x
            )

    _, stats, _ = check_model(Branching(nnx.Rngs(0)), sign * jnp.abs(X))
    assert stats["a"].count == (6 if sign == 1 else 0)
    assert stats["b"].count == (0 if sign == 1 else 6)


def test_loops():
    class Looped(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            def body(_, carry):
                dense, x = carry
                return dense, jnp.tanh(dense(x))

            return nnx.fori_loop(0, 3, body, (self.dense, x))[1]

    _, stats, _ = check_model(Looped(nnx.Rngs(0)), X)
    assert stats["dense"].count == 18


def test_while_loop_beside_a_use():
    def loss_fn(dense, x):
        def body(carry):
            return carry[0], 1 + jnp.square(carry[0](carry[1]))

        start = nnx.while_loop(lambda c: jnp.sum(c[1]) < 10, body, (dense, x))[1]
        return jnp.mean(jnp.square(dense(jax.lax.stop_gradient(start))))

    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    taps = lbo.nnx.taps(model, X, method=loss_fn)
    lbo.nnx.value_and_grad(loss_fn, taps)(model, X)


class Shared(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(3, 3, rngs=rngs)
        self.b = self.a
        self.c = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.c(self.b(jnp.sin(self.a(x))))


def test_module_in_two_places():
    taps, stats, _ = check_model(Shared(nnx.Rngs(0)), X)
    assert names(taps) == ["a", "c"]
    assert stats["a"].count == 12


def test_kernel_of_two_layers():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = (nnx.Linear(3, 3, rngs=rngs) for _ in range(2))
            self.b.kernel = self.a.kernel

        def __call__(self, x):
            return self.b(jnp.tanh(self.a(x)))

    taps, stats, _ = check_model(Tied(nnx.Rngs(0)), X)
    assert names(taps) == ["a"]
    assert stats["a"].count == 12


def test_two_calls():
    def loss_fn(model, x):
        return mean_square(model, x) + mean_square(model, 2 * x[:2])

    model = MLP(nnx.Rngs(0))
    taps = lbo.nnx.taps(model, X, statistic="gram")
    _, _, stats, _ = check(taps, loss_fn, model, X)
    assert stats["out"].count == 8


CELLS = [nnx.GRUCell, nnx.LSTMCell, nnx.SimpleCell, nnx.OptimizedLSTMCell]


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent(cell):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.RNN(cell(3, 4, rngs=rngs)), nnx.Linear(4, 2, rngs=rngs))
    _, stats, _ = check_model(model, normal(1, 2, 5, 3))
    assert {float(stat.count[0]) for stat in stats.values()} == {10.0}


def test_bidirectional():
    rngs = nnx.Rngs(0)
    rnns = [nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs)) for _ in range(2)]
    taps, *_ = check_model(nnx.Bidirectional(*rnns), normal(1, 2, 5, 3))
    assert len(taps.layers) == 4


def test_attention():
    class Transformer(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(7, 4, rngs=rngs)
            self.norm = nnx.LayerNorm(4, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                2, 4, dropout_rate=0.2, decode=False, deterministic=False, rngs=rngs
            )
            self.up, self.down = (
                nnx.Linear(4, 8, rngs=rngs),
                nnx.Linear(8, 4, rngs=rngs),
            )

        def __call__(self, tokens):
            x = self.embed(tokens)
            x += self.attention(self.norm(x), mask=nnx.make_causal_mask(tokens))
            return x + self.down(nnx.gelu(self.up(x)))

    tokens = jnp.arange(10).reshape(2, 5) % 7
    taps, stats, _ = check_model(Transformer(nnx.Rngs(0)), tokens)
    assert "attention/query" in names(taps)
    assert "attention/key" not in stats  # shares the input of the query
    norms = [p for p in taps.plain if p.path.startswith("norm")]
    assert norms
    assert all("LayerNorm scales and shifts" in p.reason for p in norms)


def test_attention_with_a_cache():
    model = nnx.MultiHeadAttention(2, 4, decode=True, rngs=nnx.Rngs(0))
    model.init_cache((2, 5, 4))
    *_, nodes = check_model(model, normal(1, 2, 1, 4))
    assert nodes[0].cache_index[...] == 1


def test_convolution_and_embedding():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(7, 2, rngs=rngs)
            self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
            self.out = nnx.LinearGeneral(4, (2, 2), rngs=rngs)

        def __call__(self, x):
            return self.out(jnp.tanh(self.conv(self.embed(x))).mean((1, 2)))

    x = jnp.arange(50).reshape(2, 5, 5) % 7
    taps, *_ = check_model(Net(nnx.Rngs(0)), x, statistic="moments")
    assert [layer.kind.name for layer in taps.layers] == ["Conv", "Embed", "Dense"]


def test_einsum_is_a_layer():
    model = nnx.Einsum("bi,io->bo", (3, 4), (4,), rngs=nnx.Rngs(0))
    taps = lbo.nnx.taps(model, X, statistic="gram")
    loss, grads, stats = lbo.nnx.value_and_grad(mean_square, taps)(model, X)
    same_tree((loss, grads), nnx.value_and_grad(mean_square)(model, X))
    check_gram(stats[""], X)


def test_containers():
    class Contained(nnx.Module):
        def __init__(self, rngs):
            dense = lambda i, o: nnx.Linear(i, o, rngs=rngs)  # noqa: E731
            self.first = nnx.Sequential(dense(3, 4), jnp.tanh, dense(4, 3))
            self.list = nnx.List([dense(3, 3) for _ in range(2)])
            self.dict = nnx.Dict(a=dense(3, 3), b=nnx.Dict(c=dense(3, 2)))

        def __call__(self, x):
            x = self.first(x)
            for each in self.list:
                x = jnp.tanh(each(x))
            return self.dict.b.c(jnp.tanh(self.dict["a"](x)))

    taps, *_ = check_model(Contained(nnx.Rngs(0)), X)
    first = ["first/layers/0", "first/layers/2"]
    assert names(taps) == ["dict/a", "dict/b/c", *first, "list/0", "list/1"]


def test_models_in_a_dictionary():
    def loss_fn(models, x):
        return jnp.mean(jnp.square(models.critic(models.actor(x))))

    models = nnx.Dict(actor=MLP(nnx.Rngs(0)), critic=MLP(nnx.Rngs(1), 2, 3, 1))
    taps, *_ = check_model(models, X, loss_fn=loss_fn, method=loss_fn)
    assert len(taps.layers) == 4


def test_own_modules():
    class Affine(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 2)))
            self.b = nnx.Param(jnp.ones(2))

        def __call__(self, x):
            return x @ self.w + self.b

    class Shifted(nnx.Linear):
        def __call__(self, x):
            return 2 * super().__call__(x + 1)

    class Stack(nnx.Module):
        def __init__(self, rngs):
            keys = rngs.params(), rngs.params()
            self.ws = nnx.List([nnx.Param(jax.random.normal(k, (3, 3))) for k in keys])

        def __call__(self, x):
            return jnp.tanh(x @ self.ws[0]) @ self.ws[1]

    def stats_of(model):
        taps = lbo.nnx.taps(model, X, statistic="gram")
        loss, grads, stats = lbo.nnx.value_and_grad(mean_square, taps)(model, X)
        same_tree((loss, grads), nnx.value_and_grad(mean_square)(model, X))
        optimizer = nnx.Optimizer(model, lbo.lnb(0.1, taps), wrt=nnx.Param)
        optimizer.update(model, grads, stats=stats)
        assert mean_square(model, X) < loss
        return taps, stats

    taps, stats = stats_of(Affine(nnx.Rngs(0)))
    assert taps.layers[0].biased
    check_gram(stats[""], X)
    check_gram(stats_of(Shifted(3, 2, rngs=nnx.Rngs(0)))[1][""], X + 1)
    model = Stack(nnx.Rngs(0))
    hidden = jnp.tanh(X @ model.ws[0][...])
    stats = stats_of(model)[1]
    check_gram(stats["ws/0"], X)
    check_gram(stats["ws/1"], hidden)


def captured(model, x):
    if hasattr(nnx, "capture"):
        return nnx.capture(model, nnx.Intermediate)(x)
    return model(x), nnx.pop(model, nnx.Intermediate)


def test_intermediates():
    class Sowing(MLP):
        def __call__(self, x):
            hidden = self.hidden(x)
            self.sow(nnx.Intermediate, "hidden_out", hidden)
            return self.out(jnp.tanh(hidden))

    def loss_fn(model, x):
        y, sown = captured(model, x)
        return jnp.mean(jnp.square(y)) + sum(
            jnp.mean(jnp.square(leaf)) for leaf in jax.tree.leaves(sown)
        )

    check_model(Sowing(nnx.Rngs(0)), X, loss_fn=loss_fn, method=captured)


def test_regularised_and_differentiated_inside():
    def penalised(model, x):
        params = jax.tree.leaves(nnx.state(model, nnx.Param))
        return mean_square(model, x) + sum(jnp.sum(jnp.square(p)) for p in params)

    def smooth(model, x):
        slope = jax.grad(lambda x: jnp.sum(model(x)))(x)
        return mean_square(model, x) + jnp.mean(jnp.square(slope))

    def meta(model, x):
        loss, grads = nnx.value_and_grad(mean_square)(model, x)
        return loss + sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads))

    model = MLP(nnx.Rngs(0))
    taps = lbo.nnx.taps(model, X, statistic="gram")
    for loss_fn in (penalised, smooth, meta):
        loss, grads, stats = lbo.nnx.value_and_grad(loss_fn, taps)(model, X)
        same_tree((loss, grads), nnx.value_and_grad(loss_fn)(model, X))
        check_gram(stats["hidden"], X)


def test_spectral_norm():
    """What a kernel is divided by is made of it, and changes with every call."""
    if not hasattr(nnx, "SpectralNorm"):
        pytest.skip("this Flax has none")
    model = nnx.SpectralNorm(nnx.Linear(3, 4, rngs=nnx.Rngs(1)), rngs=nnx.Rngs(0))

    def loss_fn(model, x):
        return jnp.mean(jnp.square(model(x, update_stats=True)))

    taps = lbo.nnx.taps(model, X, statistic="gram", update_stats=True)
    _, _, stats, _ = check(taps, loss_fn, model, X, statistics=False)
    check_gram(stats["layer_instance"], X)


def test_linen_inside():
    import flax.linen as nn

    inner = nn.Sequential([nn.Dense(4), jnp.tanh, nn.Dense(2)])
    model = nnx.bridge.ToNNX(inner, rngs=nnx.Rngs(0)).lazy_init(X)
    taps = lbo.nnx.taps(model, X, statistic="gram")
    loss, grads, stats = lbo.nnx.value_and_grad(mean_square, taps)(model, X)
    same_tree((loss, grads), nnx.value_and_grad(mean_square)(model, X))
    check_gram(stats["layers_0"], X)


def test_tree_in_one_parameter():
    class Pair(nnx.Module):
        def __init__(self):
            self.p = nnx.Param({"w": normal(1, 3, 2), "b": jnp.ones(2)})

        def __call__(self, x):
            return x @ self.p["w"] + self.p["b"]

    model = Pair()
    taps = lbo.nnx.taps(model, X, statistic="gram")
    loss, grads, stats = lbo.nnx.value_and_grad(mean_square, taps)(model, X)
    check_gram(stats[taps.layers[0].key], X)
    optimizer = nnx.Optimizer(model, lbo.lnb(0.1, taps), wrt=nnx.Param)
    optimizer.update(model, grads, stats=stats)
    assert mean_square(model, X) < loss

"""What goes wrong with NNX modules is said, with the way out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import linboost_optax as lbo
from tests.nnx_oracle import MLP, check_gram, mean_square, normal

X = normal(0, 6, 3)
MODEL = MLP(nnx.Rngs(0))
TAPS = lbo.nnx.taps(MODEL, X)


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 2, rngs=rngs)

    def encode(self, x):
        return self.dense(x)


def collect(loss_fn=mean_square, taps=TAPS, **options):
    return lbo.nnx.value_and_grad(loss_fn, taps, **options)


def update(model, tx, **extra):
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param), **extra)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: lbo.nnx.taps(MLP, X),
            "got the class MLP. Make an instance first: `MLP",
        ),
        (
            lambda: lbo.nnx.taps(nn.Dense(3), X),
            "got the flax.linen module Dense. Call `nnx.taps.* `linen.taps` is for Lin",
        ),
        (lambda: lbo.nnx.taps(nn.Dense, X), "got the flax.linen module Dense"),
        (lambda: lbo.nnx.taps(int, X), "got the class int"),
        (
            lambda: lbo.nnx.taps(nnx.state(MODEL), X),
            r"got a State. .* `lbo.taps\(function, params, x\)` for all else",
        ),
        (
            lambda: lbo.linen.taps(MODEL, X),
            r"got the flax.nnx module MLP. .* `nnx.taps\(model, x\)` is for NNX",
        ),
        (lambda: lbo.linen.taps(MLP, X), "got the flax.nnx module MLP"),
        (lambda: lbo.linen.taps(int, X), "got the class int"),
        (
            lambda: lbo.nnx.taps(MODEL),
            r"MLP\(self, x\): missing a required argument: 'x'. Call `nnx.taps",
        ),
        (lambda: lbo.nnx.taps(MODEL, X, X), r"MLP\(self, x\): too many positional"),
        (
            lambda: lbo.nnx.taps(MODEL, X, train=True),
            "unexpected keyword argument 'train'",
        ),
        (
            lambda: lbo.nnx.taps(MODEL, X, rank=4),
            r"Pass e.g. `statistic=lbo.Auto\(rank=4",
        ),
        (
            lambda: lbo.nnx.taps(MODEL, (6, 3)),
            r"got \(6, 3\), which reads like a shape. .*ShapeDtypeStruct\(\(6, 3\)",
        ),
        (lambda: lbo.nnx.taps(MODEL, X[:, :2]), "contracting dimensions"),
        (
            lambda: lbo.nnx.taps(Encoder(nnx.Rngs(0)), X),
            "Encoder has no `__call__`. Say what is called: `method=`",
        ),
        (
            lambda: lbo.nnx.taps(Encoder(nnx.Rngs(0)), method="encode"),
            r"Encoder\(self, x\): missing a required argument: 'x'",
        ),
        (
            lambda: lbo.nnx.taps(MODEL, X, method="encode"),
            "`method` must be a method of MLP, got 'encode'",
        ),
        (
            lambda: lbo.nnx.taps(MODEL, X, method=3),  # type: ignore
            "`method` must be a name or a function of the module, got 3",
        ),
        (lambda: collect(argnums=1), "`argnums` is no argument .* parameters by `wrt`"),
        (
            lambda: collect(graph=False),
            "`graph` is no argument of this `value_and_grad`",
        ),
        (lambda: collect(holomorphic=True), "`holomorphic` is no argument of this"),
        (lambda: collect(TAPS, mean_square), "`taps` must be a Taps, got function"),  # type: ignore
        (lambda: collect(X), "`loss_fn` must be callable, got"),
        (
            lambda: collect(lambda models, x: mean_square(models[0], x))(
                (MODEL, MODEL), X
            ),
            "got modules in a tuple. Make one module .* `nnx.Dict`",
        ),
        (
            lambda: collect(has_aux=True)(MODEL, X),
            r"must return `\(loss, aux\)` with `has_aux=True`, got \w*Tracer",
        ),
        (
            lambda: collect(lambda model, x: (mean_square(model, x), 1))(MODEL, X),
            "Gradient only defined for scalar-output functions",
        ),
        (
            lambda: collect()(nnx.graphdef(MODEL)),
            "parameters after the GraphDef, got it al",
        ),
        (lambda: collect()(), "missing a required argument: 'model'"),
        (
            lambda: lbo.nnx.register(MODEL, lambda module, x: "no"),  # type: ignore
            "must be a class of flax.nnx modules, got a MLP. Pass the class",
        ),
        (
            lambda: lbo.nnx.register(nn.Dense, lambda module, x: "no"),  # type: ignore
            "must be a class of flax.nnx modules, got the class Dense",
        ),
        (
            lambda: lbo.nnx.register(Encoder, "no"),  # type: ignore
            r"`describe` must map \(module, input\) to a Kind, got 'no'",
        ),
    ],
)
def test_type_errors(call, match):
    with pytest.raises(TypeError, match=match):
        call()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: lbo.nnx.taps(MODEL, X, wrt=nnx.LoRAParam),
            "`wrt` must choose variables of MLP, which has Param; got LoRAParam. Pass",
        ),
        (
            lambda: collect(wrt=nnx.BatchStat)(MODEL, X),
            "`wrt` must choose variables of MLP, which has Param; got BatchStat",
        ),
        (
            lambda: lbo.nnx.taps(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), X),
            "`wrt` must choose variables of Dropout, which has RngCount, RngKey; got",
        ),
        (
            lambda: lbo.nnx.taps(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), X),
            "no layer that can be tapped: .*BatchNorm scales and shifts",
        ),
        (lambda: lbo.nnx.taps(MODEL, X, statistic="grm"), "must be one of 'auto', "),  # type: ignore
        (
            lambda: lbo.nnx.taps(MODEL, X, exclude="hiden"),
            "must name a layer, got 'hiden'",
        ),
        (
            lambda: collect()(MLP(nnx.Rngs(0), width=5), X),
            r"'hidden' with a kernel of shape \(3, 4\), the parameters have \(3, 5\)",
        ),
        (
            lambda: collect()(Encoder(nnx.Rngs(0)), X),
            "layer 'hidden', which the parameters lack: these taps belong to another",
        ),
        (
            lambda: collect(lambda x, model: mean_square(model, x))(X, MODEL),
            "which the parameters lack",
        ),
        (
            lambda: collect(lambda model, x: jnp.sum(model.hidden(x)))(MODEL, X),
            "layer 'out' has a tap but did not reach the loss",
        ),
        (
            lambda: collect(
                lambda model, x: (
                    mean_square(model, x) + jnp.sum(x @ model.hidden.kernel)
                )
            )(MODEL, X),
            "layer 'hidden': the loss multiplies its kernel with activations outside",
        ),
        (
            lambda: update(MODEL, lbo.lnb(0.1, TAPS)),
            "`stats` is missing: this optimizer",
        ),
        (
            lambda: update(MODEL, lbo.lnb(0.1, TAPS), stats={}),
            "`stats` lacks layer 'hidden'; it has",
        ),
        (
            lambda: update(Encoder(nnx.Rngs(0)), lbo.lnb(0.1, TAPS)),
            "these taps belong to another model",
        ),
    ],
)
def test_value_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.lenient("a product of an array and a module")
def test_attribute_of_the_wrong_type():
    model = MLP(nnx.Rngs(0))
    model.hidden = jnp.ones(3)
    with pytest.raises(TypeError, match="is not callable"):
        lbo.nnx.taps(model, X)


def test_kernel_that_is_no_parameter():
    model = MLP(nnx.Rngs(0))
    model.hidden.kernel = nnx.BatchStat(model.hidden.kernel[...])
    taps = lbo.nnx.taps(model, X)
    assert [layer.key for layer in taps.layers] == ["out"]
    assert [plain.path for plain in taps.plain] == ["hidden/bias"]


def test_layer_that_the_loss_leaves_out():
    def loss_fn(model, x):
        return jnp.mean(jnp.square(model.hidden(x)))

    _, grads, stats = collect(loss_fn, allow_unconnected=True)(MODEL, X)
    assert stats["out"].count == 0
    assert not grads["out"]["kernel"][...].any()


class Declared(nnx.Module):
    def __init__(self, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 2)))

    def __call__(self, x):
        return jnp.sum(x[..., None] * self.w[...], axis=-2)


def declared(describe, **names):
    """Returns a module of a class of its own, registered, and its taps."""
    kind = type(
        "Kind", (Declared,), {"__call__": lambda self, x: Declared.__call__(self, x)}
    )
    lbo.nnx.register(kind, describe, **names)
    model = kind(nnx.Rngs(0))
    return model, lbo.nnx.taps(model, X, statistic="gram")


def test_registered_module():
    dense = lbo.extend.Dense((), (3,), (2,))
    with jax.numpy_rank_promotion("allow"):
        model, taps = declared(lambda module, x: dense, kernel="w")
        _, grads, stats = collect(taps=taps)(model, X)
        want = nnx.grad(mean_square)(model, X)
    check_gram(stats[""], X)
    assert jnp.allclose(grads["w"][...], want["w"][...])


@pytest.mark.parametrize(
    ("describe", "names", "match"),
    [
        (lambda m, x: 3, {"kernel": "w"}, "must return a Kind or the reason .*, got 3"),
        (
            lambda m, x: lbo.extend.Dense((), (3,), (2,)),
            {},
            "must have a parameter `kernel`. Pass its name",
        ),
        (
            lambda m, x: lbo.extend.Dense((), (3,), (4,)),
            {"kernel": "w"},
            r"must return a kind of its kernel's shape \(3, 2\), got",
        ),
        (lambda m, x: "is left alone", {"kernel": "w"}, "'w': 'is left alone'"),
    ],
)
@pytest.mark.lenient("a product by broadcasting")
def test_wrong_description(describe, names, match):
    with pytest.raises((TypeError, ValueError), match=match):
        declared(describe, **names)


def test_a_class_that_is_registered_again():
    class Sum(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((3, 2)))

        def __call__(self, inputs):
            return jnp.sum(inputs[..., None] * self.w[...][None], axis=-2)

    def describe(module, x):
        return lbo.extend.Dense((), (3,), (2,))

    x = jnp.ones((4, 3))
    lbo.nnx.register(Sum, describe, kernel="ww")
    with pytest.raises(ValueError, match="must have a parameter `ww`"):
        lbo.nnx.taps(Sum(), x)
    lbo.nnx.register(Sum, describe, kernel="w")
    taps = lbo.nnx.taps(Sum(), x)
    assert [layer.kernel for layer in taps.layers] == ["w"]
    assert Sum()(inputs=x).shape == (4, 2)  # called by the user's own name

    class Silent(nnx.Module):
        pass

    with pytest.raises(TypeError, match="must have a `__call__`"):
        lbo.nnx.register(Silent, describe)

"""Layers inside of modules: statistics are those of inputs that are written out here.

What a layer's own product is linear in is its input; what reaches it is worked out by
the formulas of the module, in NumPy.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.jacobian import EXACT, check_inputs, normal, of, of_function

F64 = {"param_dtype": jnp.float64}
# float32: where a module rounds to it, or is made of it.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}


pytestmark = pytest.mark.lenient("Flax has float32 of its own beside float64")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def pure(params):
    """Returns parameters as dictionaries of NumPy's arrays."""
    tree = nnx.to_pure_dict(params) if isinstance(params, nnx.State) else params
    return jax.tree.map(np.asarray, tree)


def sources(taps):
    """Returns which layers share one statistic."""
    groups = {}
    for layer in taps.layers:
        groups.setdefault(layer.stats_key, set()).add(str(layer))
    return sorted(map(sorted, groups.values()))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def attended(q, k, v):
    """Returns attention ``[batch, time, head, channel]``."""
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    return np.einsum("bhts,bshd->bthd", softmax(scores), v)


def heads(p, x):
    return np.einsum("btc,chd->bthd", x, p["kernel"]) + p["bias"]


def merged(x):
    return x.reshape(*x.shape[:-2], -1)


ATTENTION = {
    "Linen": lambda: nn.MultiHeadDotProductAttention(2, qkv_features=4, **F64),
    "NNX": lambda: nnx.MultiHeadAttention(
        2, 3, 4, decode=False, rngs=nnx.Rngs(0), **F64
    ),
}


@pytest.mark.parametrize("framework", ATTENTION)
@pytest.mark.parametrize("cross", [False, True])
def test_attention(framework, cross):
    x, y = normal(0, 2, 4, 3), normal(1, 2, 5, 3)
    args = (x, y) if cross else (x,)
    problem = of(ATTENTION[framework](), *args)
    p, y = pure(problem.params), args[-1]
    out = attended(heads(p["query"], x), heads(p["key"], y), heads(p["value"], y))
    expected = {"query": (x, True), "key": (y, True), "value": (y, True)}
    expected["out"] = (merged(out), True)
    # NNX's softmax is in float32.
    taps = check_inputs(problem, expected, EXACT if framework == "Linen" else FLOAT32)
    shared = [["key", "value"], ["out"], ["query"]]
    assert sources(taps) == (shared if cross else [["key", "query", "value"], ["out"]])


def of_one_kernel(qkv, project, x):
    q, k, v = jnp.moveaxis(qkv(x), -3, 0)
    return project(nn.dot_product_attention(q, k, v))


class LinenAttention(nn.Module):
    @nn.compact
    def __call__(self, x):
        qkv = nn.DenseGeneral((3, 2, 2), name="qkv", **F64)
        out = nn.DenseGeneral(3, axis=(-2, -1), name="out", **F64)
        return of_one_kernel(qkv, out, x)


class NNXAttention(nnx.Module):
    def __init__(self, rngs):
        self.qkv = nnx.LinearGeneral(3, (3, 2, 2), rngs=rngs, **F64)
        self.out = nnx.LinearGeneral((2, 2), 3, axis=(-2, -1), rngs=rngs, **F64)

    def __call__(self, x):
        return of_one_kernel(self.qkv, self.out, x)


@pytest.mark.parametrize("make", [LinenAttention, lambda: NNXAttention(nnx.Rngs(0))])
def test_attention_of_one_kernel(make):
    x = normal(0, 2, 4, 3)
    problem = of(make(), x)
    p = pure(problem.params)
    qkv = np.einsum("btc,cshd->sbthd", x, p["qkv"]["kernel"])
    qkv += p["qkv"]["bias"][:, None, None]
    check_inputs(problem, {"qkv": (x, True), "out": (merged(attended(*qkv)), True)})


def dense(p, x):
    """Returns what a dense layer makes of its input."""
    return x @ p["kernel"] + p.get("bias", 0.0)


def simple(p, h, x, i="i", o="h", residual=False):
    return np.tanh(dense(p[i], x) + dense(p[o], h) + (h if residual else 0))


def gru(p, h, x):
    r = sigmoid(dense(p["ir"], x) + dense(p["hr"], h))
    z = sigmoid(dense(p["iz"], x) + dense(p["hz"], h))
    n = np.tanh(dense(p["in"], x) + r * dense(p["hn"], h))
    return (1 - z) * n + z * h


def gru_of_two(p, h, x):
    ir, iz, xn = np.split(dense(p["dense_i"], x), 3, axis=-1)
    hr, hz, hn = np.split(dense(p["dense_h"], h), 3, axis=-1)
    z = sigmoid(iz + hz)
    return (1 - z) * np.tanh(xn + sigmoid(ir + hr) * hn) + z * h


def mgu(p, h, x, reset=True):
    f = sigmoid(dense(p["if"], x) + dense(p["hf"], h))
    n = np.tanh(dense(p["in"], x) + dense(p["hn"], h) * (f if reset else 1))
    return (1 - f) * n + f * h


def lstm(p, carry, x, forget="if"):
    c, h = carry
    names = (("ii", "hi"), (forget, "hf"), ("ig", "hg"), ("io", "ho"))
    i, f, g, o = (dense(p[a], x) + dense(p[b], h) for a, b in names)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def lstm_of_two(p, carry, x):
    gates = dense(p["dense_i"], x) + dense(p["dense_h"], carry[1])
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = sigmoid(f) * carry[0] + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def recurrent(cls, **options):
    """Returns what makes a cell of three inputs and two units."""
    if issubclass(cls, nn.Module):
        return lambda: cls(2, **F64, **options)
    return lambda: cls(3, 2, rngs=nnx.Rngs(0), **F64, **options)


SIMPLE = ({"i": True}, {"h": False})
TWO = functools.partial(simple, i="dense_i", o="dense_h")
GRU = ({"ir": True, "iz": True, "in": True}, {"hr": False, "hz": False, "hn": True})
MGU = ({"if": True, "in": True}, {"hf": False, "hn": True})
LSTM = (
    dict.fromkeys(("ii", "if", "ig", "io"), False),
    dict.fromkeys(("hi", "hf", "hg", "ho"), True),
)
NNX_LSTM = (dict.fromkeys(("ii", "if_", "ig", "io"), False), LSTM[1])
# Cells, their formulas, and which layers read the input and the state: with a bias?
CELLS = {
    "SimpleCell": (recurrent(nn.SimpleCell), simple, *SIMPLE),
    "SimpleCell, residual": (
        recurrent(nn.SimpleCell, residual=True),
        functools.partial(simple, residual=True),
        *SIMPLE,
    ),
    "GRUCell": (recurrent(nn.GRUCell), gru, *GRU),
    "MGUCell": (recurrent(nn.MGUCell), mgu, *MGU),
    "MGUCell without reset": (
        recurrent(nn.MGUCell, reset_gate=False),
        functools.partial(mgu, reset=False),
        MGU[0],
        {"hf": False, "hn": False},
    ),
    "LSTMCell": (recurrent(nn.LSTMCell), lstm, *LSTM),
    "OptimizedLSTMCell": (recurrent(nn.OptimizedLSTMCell), lstm, *LSTM),
    "nnx.SimpleCell": (
        recurrent(nnx.SimpleCell, dtype=jnp.float64),
        TWO,
        {"dense_i": True},
        {"dense_h": False},
    ),
    "nnx.SimpleCell, residual": (
        recurrent(nnx.SimpleCell, dtype=jnp.float64, residual=True),
        functools.partial(TWO, residual=True),
        {"dense_i": True},
        {"dense_h": False},
    ),
    "nnx.GRUCell": (
        recurrent(nnx.GRUCell),
        gru_of_two,
        {"dense_i": True},
        {"dense_h": False},
    ),
    "nnx.LSTMCell": (
        recurrent(nnx.LSTMCell),
        functools.partial(lstm, forget="if_"),
        *NNX_LSTM,
    ),
    "nnx.OptimizedLSTMCell": (
        recurrent(nnx.OptimizedLSTMCell),
        lstm_of_two,
        {"dense_i": False},
        {"dense_h": True},
    ),
}


def is_lstm(name):
    return "LSTM" in name


def carry_of(name, h):
    return (normal(5, *h.shape), h) if is_lstm(name) else h


def expected_of(name, x, h, below=""):
    _, _, of_x, of_h = CELLS[name]
    of_x = {below + layer: (x, biased) for layer, biased in of_x.items()}
    return {**of_x, **{below + layer: (h, biased) for layer, biased in of_h.items()}}


@pytest.mark.parametrize("name", CELLS)
def test_one_step_of_a_cell(name):
    x, h = normal(0, 4, 3), normal(1, 4, 2)
    make, step, *_ = CELLS[name]
    carry = carry_of(name, h)
    problem = of(make(), carry, x, read=lambda out: out[1])
    taps = check_inputs(problem, expected_of(name, x, h))
    assert not taps.plain
    # What is checked with more steps below: the formulas are those of the cell.
    new = step(pure(problem.params), carry, x)
    want = problem.function(problem.params, *problem.args)
    np.testing.assert_allclose(new[1] if is_lstm(name) else new, want, rtol=1e-10)


def states(name, params, x):
    """Returns the state before every step over ``[time, batch, feature]``."""
    step = CELLS[name][1]
    zeros = np.zeros((x.shape[1], 2))
    carry, seen = ((zeros, zeros) if is_lstm(name) else zeros), []
    for each in x:
        seen.append(carry[1] if is_lstm(name) else carry)
        carry = step(params, carry, each)
    return np.stack(seen)


OPTIONS = (
    {},
    {"reverse": True},
    {"time_major": True},
    {"reverse": True, "keep_order": True, "time_major": True},
    {"unroll": 2},
)


def over_time(name, cell, **options):
    make = nnx.RNN if name.startswith("nnx") else nn.RNN
    return make(cell, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("options", OPTIONS[:2])
def test_cells_over_time(name, options):
    over_time_is_checked(name, options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GRUCell", "nnx.GRUCell"])
@pytest.mark.parametrize("options", OPTIONS[2:])
def test_options_of_loops_over_time(name, options):
    over_time_is_checked(name, options)


def over_time_is_checked(name, options):
    x = normal(0, 4, 3, 3)
    problem = of(over_time(name, CELLS[name][0](), **options), x)
    x = x if options.get("time_major") else x.swapaxes(0, 1)
    x = x[::-1] if options.get("reverse") else x
    h = states(name, pure(problem.params)["cell"], x)
    check_inputs(problem, expected_of(name, x, h, "cell/"))


@pytest.mark.parametrize("name", ["GRUCell", "nnx.GRUCell", "nnx.OptimizedLSTMCell"])
def test_both_directions(name):
    x, cells = normal(0, 2, 4, 3), [CELLS[name][0]() for _ in range(2)]
    make = nnx.Bidirectional if name.startswith("nnx") else nn.Bidirectional
    problem = of(make(*(over_time(name, cell) for cell in cells)), x)
    params, x = pure(problem.params), x.swapaxes(0, 1)
    expected = {}
    for where, each in (("forward_rnn", x), ("backward_rnn", x[::-1])):
        h = states(name, params[where]["cell"], each)
        expected.update(expected_of(name, each, h, f"{where}/cell/"))
    check_inputs(problem, expected)


def patches(x, window=3):
    """Returns the windows of ``[batch, place, channel]``, padded to the same size."""
    x = np.pad(x, ((0, 0), (1, window - 2), (0, 0)))
    places = range(x.shape[1] - window + 1)
    return np.stack([x[:, i : i + window].reshape(len(x), -1) for i in places], axis=1)


@pytest.mark.parametrize("bias", [True, False])
def test_convolutional_lstm(bias):
    x, c, h = normal(0, 2, 5, 3), normal(1, 2, 5, 2), normal(2, 2, 5, 2)
    cell = nn.ConvLSTMCell(2, (3,), use_bias=bias, **F64)
    problem = of(cell, (c, h), x, read=lambda out: out[1])
    check_inputs(problem, {"ih": (patches(x), bias), "hh": (patches(h), bias)})


def test_adapters_of_low_rank():
    x, rngs = normal(0, 4, 3), nnx.Rngs(0)
    problem = of(nnx.LoRA(3, 2, 4, rngs=rngs, **F64), x)
    a = pure(problem.params)["lora_a"]
    low = {"lora_a": (x, False), "lora_b": (x @ a, False)}
    check_inputs(problem, low)
    base = nnx.Linear(3, 4, rngs=rngs, **F64)
    problem = of(nnx.LoRA(3, 2, 4, base_module=base, rngs=rngs, **F64), x)
    low["lora_b"] = (x @ pure(problem.params)["lora_a"], False)
    check_inputs(problem, {**low, "base_module": (x, True)})


@pytest.mark.parametrize("wrt", [nnx.Param, nnx.LoRAParam])
def test_a_linear_layer_with_an_adapter_of_low_rank(wrt):
    x = normal(0, 4, 3)
    model = nnx.LoRALinear(3, 4, lora_rank=2, rngs=nnx.Rngs(0), **F64)
    problem = of(model, x, wrt=wrt)
    a = pure(problem.params)["lora"]["lora_a"]
    expected = {"lora/lora_a": (x, False), "lora/lora_b": (x @ a, False)}
    if wrt is nnx.Param:
        expected["kernel"] = (x, True)  # the root has a layer below it
    check_inputs(problem, expected)


def wrapped(norm, inner):
    if issubclass(norm, nnx.Module):
        return norm(inner(), rngs=nnx.Rngs(0))
    return norm(inner())


INNER = {
    "Dense": (lambda: nn.Dense(2, **F64), (4, 3)),
    "Conv": (lambda: nn.Conv(2, (3,), **F64), (2, 4, 3)),
    "Linear": (lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0), **F64), (4, 3)),
    "nnx.Conv": (lambda: nnx.Conv(3, 2, (3,), rngs=nnx.Rngs(0), **F64), (2, 4, 3)),
}


# NNX's averages are float32.
@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")
@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("norm", ["weight", "spectral", "spectral, updated"])
def test_normalised_kernels(name, norm):
    inner, shape = INNER[name]
    framework = nnx if "nnx" in name or name == "Linear" else nn
    x, options = normal(0, *shape), {}
    if norm != "weight":
        options["update_stats"] = norm == "spectral, updated"
    if options.get("update_stats") and framework is nn:
        options.update(mutable="batch_stats", read=lambda out: out[0])
    module = framework.WeightNorm if norm == "weight" else framework.SpectralNorm
    problem = of(wrapped(module, inner), x, **options)
    seen = x if len(shape) == 2 else patches(x)
    check_inputs(problem, {"layer_instance": (seen, True)})


class Fp8Einsum(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, (3, 2))
        y = nn.Fp8Einsum()("bd,de->be", x, kernel)
        return y + self.param("bias", nn.initializers.ones, (2,))


def fp8_dense(product, bias):
    return lambda: nn.Dense(2, use_bias=bias, dot_general_cls=getattr(nn, product))


# Products of 8 bits, whether they have a bias, and what 8 bits the input goes through
# first: an operator that narrows inside of the product has the input as it was.
FP8 = {
    "rounded": (fp8_dense("Fp8DotGeneralOp", True), True, jnp.float8_e4m3fn),
    "rounded, no bias": (
        fp8_dense("Fp8DotGeneralOp", False),
        False,
        jnp.float8_e4m3fn,
    ),
    "rounded, AMD": (
        fp8_dense("NANOOFp8DotGeneralOp", True),
        True,
        jnp.float8_e4m3fnuz,
    ),
    "direct": (fp8_dense("Fp8DirectDotGeneralOp", True), True, None),
    "direct, no bias": (fp8_dense("Fp8DirectDotGeneralOp", False), False, None),
    "einsum": (Fp8Einsum, True, None),
}


@pytest.mark.filterwarnings("ignore:The Fp8DotGeneralOp is deprecated")
@pytest.mark.parametrize("name", FP8)
def test_products_of_8_bits(name):
    model, bias, rounded = FP8[name]
    x = normal(0, 4, 3).astype("float32")
    seen = x if rounded is None else x.astype(rounded).astype("float32")
    check_inputs(of(model(), x), {".": (seen, bias)}, FLOAT32)


def test_experts_that_tokens_are_sent_to():
    x, shares = normal(0, 6, 3), np.abs(normal(1, 6, 2, 4))

    def function(p, x, shares):
        sent = jnp.einsum("nec,nd->ecd", shares, x)
        hidden = jnp.tanh(jnp.einsum("ecd,edf->ecf", sent, p["up"]) + p["b"])
        back = jnp.einsum("ecf,efd->ecd", hidden, p["down"])
        return jnp.einsum("nec,ecd->nd", shares, back)

    shapes = {"up": (2, 3, 4), "b": (2, 1, 4), "down": (2, 4, 3)}
    params = {name: np.ones(shape) for name, shape in shapes.items()}
    problem = of_function(function, params, x, shares)
    p = pure(problem.params)
    sent = np.einsum("nec,nd->ecd", shares, x)
    hidden = np.tanh(np.einsum("ecd,edf->ecf", sent, p["up"]) + p["b"])
    check_inputs(problem, {"up": (sent, True), "down": (hidden, False)})

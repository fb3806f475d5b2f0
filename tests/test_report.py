"""The report: what is covered, what it costs, and lines that stand for many."""

import math
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linboost_optax as lbo
from linboost_optax import linen
from linboost_optax._taps import Plain, Taps
from linboost_optax._taps.work import count

# XLA also counts the loss, biases and sums; it leaves out products with the zeros of a
# padding. Ours are products alone.
XLA = 1.15


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def compiled_flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


LAYERS = [
    (nn.Dense(32), (64, 48)),
    (nn.Dense(32, use_bias=False), (4, 16, 48)),
    (nn.DenseGeneral((4, 8), axis=(-2, -1)), (32, 6, 8)),
    (nn.DenseGeneral(16, batch_dims=(0,)), (3, 32, 24)),
    (nn.Conv(24, (3, 3), padding="VALID"), (4, 12, 12, 16)),
    (nn.Conv(24, (3, 3)), (4, 16, 16, 16)),
    (nn.Conv(24, (5,), strides=2), (4, 64, 16)),
    (nn.Conv(24, (3,), feature_group_count=4, padding="VALID"), (4, 64, 16)),
]


@pytest.mark.parametrize(("module", "sizes"), LAYERS, ids=str)
def test_flops_of_a_layer_are_those_of_the_compiler(module, sizes, optimized):
    x = shape(*sizes)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    loss = lambda p, x: jnp.sum(module.apply(p, x) ** 2)  # noqa: E731
    want = compiled_flops(jax.value_and_grad(loss, (0, 1)), params, x)
    kind = linen.taps(module, x).layers[0].kind
    assert want / XLA < kind.flops(sizes) < want * XLA


def test_flops_of_an_embedding_are_those_of_its_gradient():
    kind = linen.taps(nn.Embed(100, 8), jnp.zeros((4, 5), jnp.int32)).layers[0].kind
    assert kind.flops((4, 5)) == 4 * 5 * 8


# Of inputs [64, 20]; rows that count times what is done for each.
MEASURED = [
    (lbo.Gram(), 64 * (2 * 20 * 20 + 20)),
    (lbo.Gram(16), 16 * (2 * 20 * 20 + 20)),
    (lbo.Sketch(4), 64 * (4 * 20 * 4 + 3 * 20)),
    (lbo.Sketch(4, 16), 16 * (4 * 20 * 4 + 3 * 20)),
    (lbo.Moments(), 64 * 3 * 20),
    (lbo.Inputs(), 0),
    (lbo.Reached(lbo.Moments()), 64 * (5 + 3 * 20)),
]


@pytest.mark.parametrize(("statistic", "want"), MEASURED, ids=str)
def test_cost_of_measuring_by_hand(statistic, want):
    taps = linen.taps(nn.Dense(5), shape(64, 20), statistic=statistic)
    solver = None if statistic.name != "inputs" else lbo.Cholesky(ridge=0.1)
    assert taps.report(solver).layers[0].measuring == want


@pytest.mark.parametrize("statistic", [lbo.Gram(), lbo.Sketch(16), lbo.Moments()])
def test_cost_of_measuring_is_that_of_the_compiler(statistic, optimized):
    x = shape(256, 64)
    (layer,) = linen.taps(nn.Dense(5), x, statistic=statistic).layers
    want = compiled_flops(lambda x: statistic.measure(layer, x, None), x)
    assert want / XLA < statistic.flops(layer) < want * XLA


def test_lookups_are_counted_one_by_one():
    taps = linen.taps(nn.Embed(100, 8), jnp.zeros((4, 5), jnp.int32))
    assert taps.report().layers[0].measuring == 20


def test_cost_of_a_gram_matrix_by_hand():
    d, o = 64, 32
    taps = linen.taps(nn.Dense(o), shape(256, d), statistic="gram")
    layer = taps.report(lbo.Cholesky(every=4)).layers[0]
    # d x d times d x o, beside terms of d (o + d) and less.
    assert 2 * d * d * o < layer.solving < 2 * d * d * o + 10 * d * (o + d)
    # A factor; its inverse, from four pieces of 16 that are joined in pairs by two
    # products, two of 16 and then one of 32; and the product of that with itself.
    inverse = 4 * 16**3 + 4 * (2 * 16**3 + 32**3)
    want = d**3 / 3 + inverse + 2 * d**3
    assert want / 4 < layer.refreshing < (want + 20 * d * d) / 4
    once = taps.report(lbo.Cholesky(every=1)).layers[0]
    assert once.refreshing == pytest.approx(4 * layer.refreshing)


def test_cost_of_a_sketch_by_hand():
    d, o, r = 512, 16, 8
    taps = linen.taps(nn.Dense(o), shape(256, d), statistic=lbo.Sketch(r))
    layer = taps.report(lbo.Cholesky(every=1)).layers[0]
    # To the rank and back, and a moving average of d x r numbers.
    assert 4 * d * r * o < layer.solving < 4 * d * r * o + 12 * d * (o + r)
    # Four products of d r^2 and two eigendecompositions of width r.
    want = 4 * 2 * d * r * r + 2 * 9 * r**3
    assert want < layer.refreshing < want + 30 * d * r


def test_cost_of_incomplete_cholesky_is_elementwise():
    taps = linen.taps(nn.Dense(16), shape(64, 20))
    layer = taps.report(lbo.IncompleteCholesky()).layers[0]
    assert layer.refreshing == 0
    assert 3 * 20 * 16 < layer.solving < 6 * 20 * 16 + 30 * 20


def test_iterations_of_conjugate_gradients_cost_alike():
    taps = linen.taps(nn.Dense(16), shape(64, 20), statistic="gram")
    costs = [
        taps.report(lbo.ConjugateGradient(iterations=i)).layers[0].solving
        for i in (2, 3, 4)
    ]
    product = 2 * 20 * 20 * 16
    assert costs[2] - costs[1] == costs[1] - costs[0]
    assert product < costs[1] - costs[0] < 3 * product


def test_products_are_counted_as_the_compiler_counts_them():
    a, b = shape(3, 16, 24), shape(3, 24, 40)
    product = lambda a, b: jnp.einsum("kij,kjl->kil", a, b)  # noqa: E731
    assert count(product, a, b).always == compiled_flops(product, a, b)


def test_loops_count_every_turn_and_branches_the_costliest():
    x = shape(8, 8)
    turn = lambda x, _: (x @ x, None)  # noqa: E731
    loop = lambda x: jax.lax.scan(turn, x, None, length=5)[0]  # noqa: E731
    assert count(loop, x) == (5 * 2 * 8**3, 0)
    branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x)  # noqa: E731
    assert count(branch, x) == (0, 2 * 8**3)


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.width, (3, 3), use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True)(y))
        y = nn.Conv(self.width, (3, 3), use_bias=False)(y)
        return x + nn.BatchNorm(use_running_average=True)(y)


class Gain(nn.Module):
    """Parameters that meet the image pixel by pixel: no kernel of anything."""

    @nn.compact
    def __call__(self, x):
        shape = x.shape[1:]
        gain = self.param("gain", nn.initializers.ones, shape)
        return x * gain[None] + self.param("shift", nn.initializers.zeros, shape)[None]


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = nn.Conv(4 * 2**i, (1, 1), use_bias=False, name=f"widen{i}")(x)
            for j in range(3):
                x = Block(4 * 2**i, name=f"stage{i}_block{j}")(x)
        return Gain(name="up")(x)


@pytest.fixture(scope="module")
def resnet():
    return linen.taps(ResNet(), shape(8, 8, 8, 3))


def test_normalisation_of_a_resnet_is_one_line(resnet):
    arrays = 2 * 3 * 2 * 2
    numbers = 3 * 2 * 2 * (4 + 8)
    norm, up = resnet.report().plain
    assert norm.pattern == "stage*_block*/BatchNorm_*/{bias,scale}"
    assert (norm.arrays, norm.parameters, norm.kernel_parameters) == (
        arrays,
        numbers,
        0,
    )
    assert norm.reason.startswith("BatchNorm scales and shifts channels one by one")
    assert norm.advice.startswith("nothing")
    assert (up.pattern, up.arrays) == ("up/{gain,shift}", 2)
    assert up.parameters == up.kernel_parameters == 2 * 8 * 8 * 8
    assert "is not multiplied with data as a kernel" in up.reason
    assert "linen.register" in up.advice


def test_table_of_a_resnet_groups_what_is_many(resnet):
    lines = [line for line in str(resnet).split("\n") if " plain " in line]
    assert [line.split("  ")[0] for line in lines] == [
        "stage*_block*/BatchNorm_*/{bias,scale}",
        "up/gain",
        "up/shift",
    ]
    assert "24 arrays" in lines[0]
    assert "it has no kernel)" in lines[0]


def test_shares_of_a_resnet_are_those_of_its_parameters(resnet):
    params = jax.eval_shape(ResNet().init, jax.random.key(0), shape(8, 8, 8, 3))
    sizes = [leaf.size for leaf in jax.tree.leaves(params["params"])]
    report = resnet.report()
    assert report.parameters == sum(sizes)
    plain = 3 * 2 * 2 * (4 + 8) + 2 * 8 * 8 * 8
    assert report.covered == pytest.approx(1 - plain / sum(sizes))
    kernels = sum(sizes) - 3 * 2 * 2 * (4 + 8)
    assert report.kernel_parameters == kernels
    assert report.kernels_covered == pytest.approx(1 - 2 * 8 * 8 * 8 / kernels)


def test_totals_are_sums_of_the_layers(resnet):
    report = resnet.report()
    total = sum(x.measuring + x.solving + x.refreshing for x in report.layers)
    assert report.share == pytest.approx(total / sum(x.flops for x in report.layers))
    one = report.layers[0]
    assert one.share == (one.measuring + one.solving + one.refreshing) / one.flops


@pytest.mark.parametrize(
    "solver", [None, lbo.IncompleteCholesky(), lbo.ConjugateGradient()], ids=str
)
def test_memory_is_that_of_statistics_and_state(solver):
    model = nn.Sequential(
        [nn.Embed(9, 6), nn.MultiHeadDotProductAttention(2), nn.Dense(3)]
    )
    tokens = jnp.zeros((4, 5), jnp.int32)
    params = model.init(jax.random.key(0), tokens)["params"]
    taps = linen.taps(model, tokens, statistic="gram")
    report = taps.report(solver)
    args = () if solver is None else (solver,)
    state = lbo.scale_by_lnb(taps, *args).init(params)
    kept = jax.tree.leaves((state.metric, state.starts))
    assert report.state_bytes == sum(leaf.nbytes for leaf in kept)
    zeros = jax.tree.leaves(taps.zeros())
    assert report.statistic_bytes == sum(leaf.nbytes for leaf in zeros)


def test_a_shared_statistic_is_paid_for_once():
    taps = linen.taps(nn.MultiHeadDotProductAttention(2), shape(4, 5, 6))
    layers = {layer.name: layer for layer in taps.report().layers}
    own, *shared = sorted(
        (layers[name] for name in ("query", "key", "value")),
        key=lambda layer: -layer.measuring,
    )
    assert own.measuring > 0
    for other in shared:
        assert other.measuring == other.statistic_bytes == other.state_bytes == 0
        assert 0 < other.solving < own.solving


def test_stacked_layers_cost_what_they_cost_apart():
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                lambda module, x, _: (module(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return scan(nn.Dense(8, name="dense"), x, None)[0]

    (stack,) = linen.taps(Stack(), shape(16, 8), statistic="gram").report().layers
    one = linen.taps(nn.Dense(8), shape(16, 8), statistic="gram").report().layers[0]
    assert stack.parameters == 3 * one.parameters
    assert (stack.flops, stack.measuring) == (3 * one.flops, 3 * one.measuring)
    assert stack.solving == pytest.approx(3 * one.solving, rel=0.01)
    assert stack.refreshing == pytest.approx(3 * one.refreshing, rel=0.01)


def test_hand_written_layers_have_memory_and_no_known_cost():
    report = lbo.dense_taps({"a": (3, 2)}, "gram").report()
    assert math.isnan(report.share)
    assert report.statistic_bytes == 52
    assert report.covered == 1
    assert "cost of a step: unknown" in str(report)


def test_a_statistic_that_does_not_say_has_no_known_cost():
    class Own(lbo.extend.Statistic):
        def shapes(self, layer):
            return lbo.extend.struct(layer, 1)

        def measure(self, layer, x, g):
            return jnp.sum(lbo.extend.batched_ones(x[:, 0], x.dtype), keepdims=True)

        def moments(self, layer, value):
            ones = jnp.ones((layer.blocks, layer.features))
            return lbo.extend.BlockMoments(value.reshape(-1), ones, ones)

    report = linen.taps(nn.Dense(2), shape(8, 3), statistic=Own()).report()
    assert math.isnan(report.layers[0].measuring)
    assert report.layers[0].flops == 6 * 8 * 3 * 2
    assert "unknown" in str(report)


def test_text():
    model = nn.Sequential([nn.Dense(64), nn.LayerNorm(), nn.Dense(2)])
    taps = linen.taps(model, shape(256, 32), statistic="gram")
    lines = str(taps.report()).split("\n")
    assert (
        lines[0]
        == "preconditioned by Cholesky(ridge=0.03, decay=0.95, every=10, shrinkage=0.1)"
    )
    header = "path kind parameters FLOP measuring solving refreshing statistic solver"
    assert " ".join(lines[1].split()) == f"{header} bytes"
    # 6 * 256 * 32 * 64 operations; 256 * (2 * 32 * 32 + 32) of them again to measure.
    assert lines[2].split()[:8] == (
        ["layers_0", "Dense", "+", "bias", "2,112", "3.15", "M", "16.9%"]
    )
    assert lines[4:7] == [
        "plain: layers_1/{bias,scale}  2 arrays, 128 parameters",
        "  why: LayerNorm scales and shifts channels one by one; it has no kernel",
        "  what to do: nothing: without a kernel they have no inputs to whiten",
    ]
    assert lines[7].startswith("covered: 94.6% of 2,370 parameters, 100.0% of 2,176 in")
    assert lines[8].startswith("cost of a step: ")
    assert "of the tapped layers' own 3.34 MFLOP (measuring " in lines[8]
    # (1 + d + d d) numbers a layer, and an average and an inverse of as many.
    assert lines[9].startswith("memory: statistics 20,872 bytes, solver ")


@pytest.mark.parametrize("several", [3, 4])
def test_up_to_three_arrays_are_listed_one_by_one(several):
    plain = tuple(Plain(f"norm_{i}/scale", (5,), "why") for i in range(several))
    layers = lbo.dense_taps({"a": (3, 2)}).layers
    lines = str(Taps(layers, plain)).split("\n")[2:-1]
    assert len(lines) == (3 if several == 3 else 1)
    assert lines[0].split()[0] == ("norm_0/scale" if several == 3 else "norm_*/scale")


def test_groups_are_of_one_reason_and_of_one_place():
    plain = [Plain(f"a{i}/b0/w{i}", (2, 3), "one") for i in range(4)]
    plain += [Plain("a4/b0/w4", (2, 3), "other"), Plain("c/b0/w0", (), "one")]
    plain += [Plain("a//b1/d2//e/v", (7,), "one"), Plain("free", (2,), "one")]
    groups = Taps((), tuple(plain)).report().plain
    assert [(g.pattern, g.arrays, g.parameters) for g in groups] == [
        ("a*/b0/w*", 4, 24),
        ("a4/b0/w4", 1, 6),
        ("c/b0/w0", 1, 1),
        ("a//b1/d2//e/v", 1, 7),
        ("free", 1, 2),
    ]


def test_what_is_no_solver_is_refused():
    taps = lbo.dense_taps({"a": (3, 2)})
    with pytest.raises(TypeError, match="`solver` must be IncompleteCholesky"):
        taps.report(lbo.Cholesky)
    with pytest.raises(ValueError, match=r"the statistic Gram\(max_samples=128\) of l"):
        taps.report(lbo.ConjugateGradient())


def test_cost_falls_with_the_batch_that_pays_for_it():
    shares = [
        linen.taps(nn.Dense(64), shape(n, 64)).report().share for n in (128, 256, 512)
    ]
    np.testing.assert_allclose(np.diff(np.log2(shares)), -1, rtol=1e-6)


def test_text_in_the_guide_is_current(capsys):
    guide = (Path(__file__).parent.parent / "docs" / "diagnostics.md").read_text()
    code, text = (
        re.search(rf"^```{language}\n(.*?)^```$", guide, re.M | re.S)[1]
        for language in ("python", "text")
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, "diagnostics.md", "exec"), {})
    assert capsys.readouterr().out == text

"""The models of the coverage job, at a tiny size; sizes of the real ones are known."""

import math
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.models import MODELS
from benchmarks.models._positions import shifted, sinusoids
from benchmarks.models.gemma import TINY as TINY_GEMMA
from benchmarks.models.gemma import Gemma, empty_caches, rotated
from benchmarks.models.lm1b import TINY, LanguageModel
from benchmarks.models.lm1b_nnx import LanguageModel as Twin
from benchmarks.models.seq2seq import Seq2seq
from benchmarks.models.sst2 import Classifier, reversed_in_time
from linboost_optax import linen
from linboost_optax import nnx as lbo_nnx

# Models are user code, which is not held to strict promotion.
pytestmark = pytest.mark.lenient("models are user code")


def loss_of(outputs):
    """A number that every output moves."""
    floats = [
        y for y in jax.tree.leaves(outputs) if jnp.issubdtype(y.dtype, jnp.floating)
    ]
    return sum(jnp.mean(jnp.square(y.astype(jnp.float32))) for y in floats)


def linen_loss(example):
    """Parameters, and a loss of them that draws the same random numbers each time."""
    args, kwargs = example.inputs(jax.random.key(1))
    variables = nn.meta.unbox(example.model.init(example.keys(), *args, **kwargs))
    params = variables.pop("params")

    def loss_fn(params):
        outputs, _ = example.model.apply(
            {"params": params, **variables},
            *args,
            rngs=example.keys(),
            mutable=[*variables, "intermediates"],
            **kwargs,
        )
        return loss_of(outputs)

    return params, loss_fn


def nnx_loss(example):
    """The same of a model in NNX."""
    graph, params, rest = nnx.split(example.model(nnx.Rngs(0)), nnx.Param, ...)
    args, _ = example.inputs(jax.random.key(1))

    def loss_fn(params):
        model = nnx.merge(graph, params, rest, copy=True)  # running averages change
        _, kwargs = example.inputs(jax.random.key(1))  # so do counts of random keys
        return loss_of(model(*args, **kwargs))

    return params, loss_fn


def loss_of_parameters(example):
    """The adapter for a model, its parameters, and a loss of them."""
    if example.framework == "Linen":
        return linen, *linen_loss(example)
    return lbo_nnx, *nnx_loss(example)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_tiny_models_run_and_have_finite_gradients(name):
    _, params, loss_fn = loss_of_parameters(MODELS[name](True))
    grads = jax.jit(jax.grad(loss_fn))(params)
    assert jax.tree.structure(params) == jax.tree.structure(grads)
    for p, g in zip(jax.tree.leaves(params), jax.tree.leaves(grads), strict=True):
        assert p.shape == g.shape
        assert np.all(np.isfinite(g))
    assert any(np.any(g) for g in jax.tree.leaves(grads))


def size(name):
    """Numbers among the parameters of a model at its real size; shapes only."""
    example = MODELS[name](False)

    def params(key):
        if example.framework == "NNX":
            return nnx.to_pure_dict(nnx.state(example.model(nnx.Rngs(0)), nnx.Param))
        args, kwargs = example.inputs(key)
        return example.model.init(example.keys(), *args, **kwargs)["params"]

    shapes = jax.tree.leaves(jax.eval_shape(params, jax.random.key(0)))
    return sum(math.prod(p.shape) for p in shapes)


def attention_block(width, hidden):
    norms, attention = 2 * 2 * width, 4 * width * width
    return norms + attention + 2 * width * hidden + hidden + width


def lstm(inputs, width):
    return 4 * (inputs * width + width * width + width)


BLOCKS = 6 * attention_block(512, 2048) + 2 * 512  # and the last LayerNorm
SIZES = {
    "mnist": 320 + 64 + 18_496 + 128 + (49 * 64 + 1) * 256 + 257 * 10,
    "resnet18": 11_689_512,  # as everywhere it is told
    "resnet50": 25_557_032,
    "lm1b": BLOCKS + 30_000 * 512 + 513 * 30_000,
    "lm1b_tied": BLOCKS + 30_000 * 512,
    "lm1b_nnx": BLOCKS + 30_000 * 512 + 513 * 30_000,
    "lm1b_nnx_tied": BLOCKS + 30_000 * 512,
    # Queries and outputs of 4 heads, keys and values of one; three matrices; norms.
    "gemma": 35_008 * 1152
    + 26 * (1152 * 256 * (2 * 4 + 2 * 1) + 3 * 1152 * 6912 + 4 * 1152 + 2 * 256)
    + 1152,
    "nlp_seq": BLOCKS + 20_000 * 512 + 513 * 50,
    "seq2seq": 2 * lstm(15, 512) + 513 * 15,
    "sst2": 16_000 * 300
    + 2 * lstm(300, 256)
    + (512 * 256 + 256)  # attention
    + (513 * 256 + 256),  # and the two layers on top
    "vae": 785 * 500 + 2 * 501 * 20 + 21 * 500 + 501 * 784,
    "graph": 69 * 32 + 65 * 2,
    "graph_by_hand": 69 * 32 + 65 * 2,
    "ppo": 8_224 + 32_832 + 36_928 + (11 * 11 * 64 + 1) * 512 + 513 * 7,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_those_of_the_examples(name):
    assert size(name) == SIZES[name]


def test_positions_are_sines_and_cosines():
    table = sinusoids(3, 4)
    np.testing.assert_allclose(table[0], [0, 0, 1, 1])
    expected = [np.sin(2), np.sin(2e-4), np.cos(2), np.cos(2e-4)]
    np.testing.assert_allclose(table[2], expected, rtol=1e-6)


def test_shifted_words_do_not_cross_sentences():
    words = jnp.array([[5, 6, 7, 8]])
    np.testing.assert_array_equal(shifted(words), [[0, 5, 6, 7]])
    segments = jnp.array([[1, 1, 2, 2]])
    np.testing.assert_array_equal(shifted(words, segments), [[0, 5, 0, 7]])


WORDS = jnp.array([[3, 5, 2, 9, 4], [1, 1, 6, 2, 10]])
QUIET = replace(TINY, deterministic=True)


@pytest.mark.parametrize("tied", [False, True])
def test_decoding_word_by_word_is_the_whole_forward_pass(tied):
    config = replace(QUIET, logits_via_embedding=tied)
    model = LanguageModel(config)
    params = model.init(jax.random.key(0), WORDS)["params"]
    whole = model.apply({"params": params}, WORDS)

    decoder = LanguageModel(replace(config, decode=True))
    cache = decoder.init(jax.random.key(0), jnp.ones_like(WORDS))["cache"]
    read = shifted(WORDS)
    for i in range(WORDS.shape[1]):
        logits, mutated = decoder.apply(
            {"params": params, "cache": cache}, read[:, i : i + 1], mutable=["cache"]
        )
        cache = mutated["cache"]
        np.testing.assert_allclose(logits[:, 0], whole[:, i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_the_twin_in_nnx_is_the_same_function_and_decodes(tied):
    config = replace(QUIET, logits_via_embedding=tied)
    first = LanguageModel(config)
    params = nn.meta.unbox(first.init(jax.random.key(0), WORDS)["params"])
    whole = first.apply({"params": params}, WORDS)
    twin = Twin(config, nnx.Rngs(0))
    copy_of(params, twin)
    np.testing.assert_allclose(twin(WORDS), whole, rtol=1e-4, atol=1e-5)

    decoder = Twin(replace(config, decode=True), nnx.Rngs(0))
    copy_of(params, decoder)
    decoder.init_cache(*WORDS.shape)
    read = shifted(WORDS)
    for i in range(WORDS.shape[1]):
        logits = decoder(read[:, i : i + 1])
        np.testing.assert_allclose(logits[:, 0], whole[:, i], rtol=1e-4, atol=1e-5)


def copy_of(params, twin):
    """Gives a twin the parameters of the model in Linen."""
    twin.embed.embedding[...] = params["Embed_0"]["embedding"]
    pairs = [(twin.norm, params["LayerNorm_0"])]
    if twin.logits is not None:
        pairs.append((twin.logits, params["logits"]))
    for i, block in enumerate(twin.blocks):
        part = params[f"block_{i}"]
        attention = part["MultiHeadDotProductAttention_0"]
        pairs += [
            (block.norm1, part["LayerNorm_0"]),
            (block.norm2, part["LayerNorm_1"]),
            (block.up, part["Dense_0"]),
            (block.down, part["Dense_1"]),
            *((getattr(block.attention, name), p) for name, p in attention.items()),
        ]
    for layer, values in pairs:
        for name, value in values.items():
            getattr(layer, name)[...] = value


def test_sentences_are_reversed_and_padding_is_not():
    x = jnp.arange(8.0).reshape(2, 4, 1)
    got = reversed_in_time(x, jnp.array([2, 4]))[..., 0]
    np.testing.assert_array_equal(got, [[1, 0, 2, 3], [7, 6, 5, 4]])


def test_words_behind_the_end_of_a_sentence_do_not_count():
    model = Classifier(7, embedding=4, width=3)
    words, lengths = jnp.array([[3, 5, 2, 0, 0]]), jnp.array([3])
    variables = model.init(jax.random.key(0), words, lengths, train=False)
    whole = model.apply(variables, words, lengths, train=False)
    padded = words.at[:, 3:].set(6)
    np.testing.assert_allclose(
        model.apply(variables, padded, lengths, train=False), whole
    )
    other = words.at[:, 2].set(6)
    assert not np.allclose(model.apply(variables, other, lengths, train=False), whole)


def test_a_writer_without_a_teacher_reads_what_it_drew():
    query, answer = MODELS["seq2seq"](True).sample(jax.random.key(0))
    keys = {"params": jax.random.key(1), "lstm": jax.random.key(2)}
    model = Seq2seq(6, 5, teacher_force=False)
    variables = model.init(keys, query, answer)
    logits, drawn = model.apply(variables, query, answer, rngs=keys)
    forced = Seq2seq(6, 5)
    # What was drawn, given as the answer, has the same logits.
    shown = jnp.concatenate([answer[:, :1], drawn], axis=1)
    again, _ = forced.apply(variables, query, shown, rngs=keys)
    np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-6)


def test_rotated_features_know_the_distance_alone():
    a, b = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 6))

    def product(i, j):
        there, here = (jnp.array([[float(at)]]) for at in (i, j))
        return jnp.sum(rotated(a, there, 1e4) * rotated(b, here, 1e4))

    np.testing.assert_allclose(product(7, 4), product(3, 0), rtol=1e-4)
    assert abs(product(7, 4) - product(7, 0)) > 1e-3


def test_gemma_decodes_what_it_computes_at_once():
    model = Gemma(TINY_GEMMA, nnx.Rngs(0))
    time = jnp.broadcast_to(jnp.arange(WORDS.shape[1]), WORDS.shape)
    whole, none = model(WORDS, time)
    assert none is None
    caches = empty_caches(TINY_GEMMA, *WORDS.shape)
    for i in range(WORDS.shape[1]):
        now = slice(i, i + 1)
        logits, caches = model(WORDS[:, now], time[:, now], caches)
        np.testing.assert_allclose(logits[:, 0], whole[:, i], rtol=1e-4, atol=1e-5)


def test_gemmas_first_word_is_out_of_its_window_in_the_end():
    model = Gemma(replace(TINY_GEMMA, layers=1), nnx.Rngs(0))  # with a window of three
    time = jnp.broadcast_to(jnp.arange(WORDS.shape[1]), WORDS.shape)
    whole, _ = model(WORDS, time)
    other, _ = model(WORDS.at[:, 0].set(7), time)
    np.testing.assert_allclose(other[:, 3:], whole[:, 3:], rtol=1e-5, atol=1e-6)
    assert not np.allclose(other[:, 2], whole[:, 2])

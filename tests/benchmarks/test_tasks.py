"""Tasks and optimizers: each is what it says it is."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.interpolate import CubicSpline

from benchmarks import tasks, tuning
from benchmarks.job import Options
from benchmarks.optimizers import OPTIMIZERS, grid, kernel_axes
from benchmarks.tasks import TASKS, _curves, _digits, dense, text
from benchmarks.tasks._models import MLP, Chain, batch_norm, layer_norm
from benchmarks.tasks._task import bernoulli
from benchmarks.tasks.versions import STUDIES
from linboost_optax import linen


@pytest.mark.parametrize("name", TASKS)
def test_task_is_consistent(name):
    task = TASKS[name].build()
    assert task.steps % task.every == 0
    assert task.every % 10 == 0
    assert task.batch_size <= len(task.train["x"])
    batch = task.batch_like()
    assert len(batch["x"]) == task.batch_size

    def losses():
        variables = task.model.init(jax.random.key(0), batch["x"], train=True)
        params = variables.pop("params")
        loss, state = task.loss(params, variables, batch)
        assert jax.tree.structure(state) == jax.tree.structure(dict(variables))
        return loss, task.metrics(params, state, task.test)

    loss, metrics = jax.eval_shape(losses)
    assert loss.shape == ()
    assert loss.dtype == jnp.float32
    assert all(value.shape == () for value in metrics.values())
    assert task.target in {f"{split}_loss" for split in ("train", "test")}


def test_shifted_digits_look_like_mnist():
    (train, _), (test, _) = splits = _digits.digits()
    assert len(train) + len(test) == 1797
    images, labels = _digits.shifted(splits[1], size=28, copies=2, seed=0, shift=4)
    assert images.shape == (2 * len(test), 28, 28)
    assert images.min() == 0
    assert 0.9 < images.max() <= 1
    assert 0.1 < np.mean(images > 0) < 0.6
    np.testing.assert_array_equal(labels[: len(test)], splits[1][1])
    assert not np.array_equal(images[: len(test)], images[len(test) :])
    again, _ = _digits.shifted(splits[1], size=28, copies=2, seed=0, shift=4)
    np.testing.assert_array_equal(images, again)


def test_the_classifier_in_another_unit_is_the_same_but_for_its_numbers():
    plain, moved = dense.classifier((8,)), dense.classifier((8,), unit=10.0, offset=3.0)
    for part in ("train", "test"):
        images, others = getattr(plain, part), getattr(moved, part)
        np.testing.assert_array_equal(images["y"], others["y"])
        np.testing.assert_allclose(others["x"], 10 * (images["x"] + 3), rtol=1e-6)
        assert others["x"].dtype == jnp.float32


def test_shifting_keeps_the_digit():
    """Without enlarging, a shift moves every pixel and loses none."""
    split = _digits.digits()[1]
    images, _ = _digits.shifted(split, size=10, copies=1, seed=0, shift=1)
    totals = images.sum(axis=(1, 2))
    np.testing.assert_allclose(totals, split[0].sum(axis=(1, 2)), rtol=1e-5)


def test_corpus_is_the_library_in_ascii():
    codes = text.corpus()
    assert len(codes) > 500_000
    assert codes.min() == 0
    assert codes.max() < text.VOCABULARY
    source = "".join("\n" if code == 0 else chr(code + 31) for code in codes[:20_000])
    assert "import argparse" in source or "ArgumentParser" in source
    np.testing.assert_array_equal(codes, text.corpus())


def test_windows_predict_the_next_character():
    data = text.windows(np.arange(11, dtype=np.int32), length=5)
    np.testing.assert_array_equal(data["x"], [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    np.testing.assert_array_equal(data["y"], [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])


def test_a_library_without_source_is_an_error(monkeypatch):
    monkeypatch.setattr(text, "MODULES", ("ast", "no_such_module"))
    with pytest.raises(FileNotFoundError, match=r"\['no_such_module'\] is not in"):
        text.corpus()


@pytest.mark.parametrize("centre", [3e-3, 0.3])
def test_grid_spans_two_decades(centre):
    rates = grid(centre, 5)
    assert rates[-1] / rates[0] == pytest.approx(100)
    assert rates[2] == centre
    ratios = np.divide(rates[1:], rates[:-1])
    np.testing.assert_allclose(ratios, math.sqrt(10), rtol=0.05)


def test_muon_orthogonalises_kernels_alone():
    params = {
        "Conv": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)},
        "Embed": {"embedding": jnp.zeros((5, 4))},
    }
    axes = kernel_axes(params)
    assert axes["Conv"]["kernel"] == ((0, 1, 2), 3)
    assert axes["Conv"]["bias"] is None
    assert axes["Embed"]["embedding"] is None
    transformation = OPTIMIZERS["muon"].build(optax.constant_schedule(1.0), None)
    grads = jax.tree.map(
        lambda p: jax.random.normal(jax.random.key(0), p.shape), params
    )
    state = jax.jit(transformation.init)(params)
    updates, _ = jax.jit(transformation.update)(grads, state, params)
    singular = np.linalg.svd(np.reshape(updates["Conv"]["kernel"], (18, 4)))[1]
    assert singular.max() / singular.min() < 2


def test_muon_and_ours_take_stacked_layers_one_by_one():
    model, x = Chain(width=4, depth=3), jnp.ones((2, 6))
    params = model.init(jax.random.key(0), x)["params"]
    kernel = params["stack"]["Dense_0"]["kernel"]
    assert kernel.shape == (2, 4, 4)
    axes = kernel_axes(params)["stack"]["Dense_0"]
    assert (*axes["kernel"], axes["bias"]) == ((1,), 2, None)
    taps = linen.taps(model, x)
    assert {layer.key: layer.stack for layer in taps.layers} == {
        "Link_0/Dense_0": (),
        "stack/Dense_0": (2,),
        "Dense_0": (),
    }
    # One layer's large gradient leaves the other's step alone.
    grads = jax.tree.map(jnp.ones_like, params)
    small = jnp.stack([jnp.eye(4), jnp.eye(4)])
    large = jnp.stack([jnp.eye(4), jnp.full((4, 4), 1e3)])
    muon = OPTIMIZERS["muon"].build(optax.constant_schedule(1.0), None)
    first = []
    for kernels in (large, small):
        grads["stack"]["Dense_0"]["kernel"] = kernels
        updates, _ = muon.update(grads, muon.init(params), params)
        first.append(updates["stack"]["Dense_0"]["kernel"][0])
    np.testing.assert_allclose(*first, rtol=1e-5, atol=1e-6)


def test_a_chain_is_its_layers_one_after_another():
    model, x = Chain(width=4, depth=3), jax.random.normal(jax.random.key(1), (5, 6))
    params = model.init(jax.random.key(0), x)["params"]
    stack = params["stack"]["Dense_0"]
    assert not np.array_equal(*stack["kernel"])
    layers = [params["Link_0"]["Dense_0"]]
    layers += [{key: value[i] for key, value in stack.items()} for i in range(2)]
    y = np.asarray(x)
    for layer in layers:
        y = np.tanh(y @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]))
    last = jax.tree.map(np.asarray, params["Dense_0"])
    expected = y @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(model.apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.parametrize("norm", [batch_norm, layer_norm])
def test_what_goes_into_every_activation_is_normalised(norm):
    seen = []

    def activation(x):
        seen.append(np.asarray(x))
        return x

    model = MLP((6, 6, 3), norm=norm, activation=activation)
    x = 5 + 3 * jax.random.normal(jax.random.key(0), (20, 4))
    model.init(jax.random.key(0), x, train=True)
    axis = 0 if norm is batch_norm else 1
    assert len(seen) == 2
    for each in seen:
        np.testing.assert_allclose(each.mean(axis), 0, atol=1e-4)
        np.testing.assert_allclose(each.std(axis), 1, atol=1e-2)


@pytest.mark.parametrize("name", STUDIES)
def test_versions_are_consistent(name):
    study = STUDIES[name]
    assert len(study.rates()) == study.points
    for label, build in study.versions.items():
        task = build()
        assert task.steps % task.every == 0, label
        assert task.every % 10 == 0, label
        assert task.batch_size <= len(task.train["x"]), label


def test_versions_differ_in_what_they_say():
    batches = [build() for build in STUDIES["batches"].versions.values()]
    assert [task.batch_size for task in batches] == [16, 64, 256, 1024]
    assert [task.steps for task in batches] == [2560, 640, 160, 160]
    depths = [build().model.depth for build in STUDIES["depths"].versions.values()]
    assert depths == [5, 10, 20, 50, 100]
    norms = [build().model.norm for build in STUDIES["norms"].versions.values()]
    assert norms == [None, batch_norm, layer_norm]
    assert STUDIES["batches"].rates(points=3) == [0.00032, 0.01, 0.32]
    assert STUDIES["batches"].rates(10, points=3) == [0.0032, 0.1, 3.2]


DENSE = (
    *("digits_classifier", "digits_autoencoder", "autoencoder_784", "mlp_784"),
    *("curves", "autoencoder_pixels", "autoencoder_hinton", "factorisation"),
)


@pytest.mark.parametrize("name", DENSE)
def test_a_criterion_is_all_there_is_to_the_loss(name):
    task = TASKS[name].build()
    batch = {key: value[:8] for key, value in task.train.items()}

    @jax.jit
    def losses():
        params = task.model.init(jax.random.key(0), batch["x"])["params"]
        outputs = task.model.apply({"params": params}, batch["x"])
        return task.loss(params, {}, batch)[0], task.criterion(outputs, batch["y"])

    loss, expected = losses()
    assert loss == pytest.approx(float(expected), rel=1e-6)


def test_curves_are_natural_splines_through_their_points():
    points = _curves.points(20, seed=3).astype(np.float64)
    times = np.linspace(0, 1, 41)
    spline = CubicSpline([0, 0.5, 1], points, axis=1, bc_type="natural")
    got = _curves.spline(points, times)
    np.testing.assert_allclose(got, spline(times), atol=1e-12)
    np.testing.assert_allclose(got[:, [0, 20, 40]], points, atol=1e-12)


def test_curves_are_drawn_through_their_points():
    images, points = _curves.images(300, seed=3), _curves.points(300, seed=3)
    assert images.shape == (300, 28, 28)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert 0.02 < images.mean() < 0.15  # a stroke, and empty paper
    # Strokes are anti-aliased: there is grey, but most pixels are paper or ink.
    grey = np.mean((images > 0.1) & (images < 0.9))
    assert 0.01 < grey < 0.1
    column, row = np.rint(points).astype(int).T  # each [point, image]
    ink = images[np.arange(300), row, column]
    # Half a pen at an end, and up to half a pixel to the centre of the next one.
    assert ink.min() > 0.3
    assert np.median(ink[1]) > 0.9


def test_a_straight_curve_is_a_line_of_the_pens_width():
    """Ink is 4 exp(-d^2 / 2 s^2) at a distance d from a line, and then saturates."""
    path = np.stack([np.linspace(-5, 33, 400), np.full(400, 14.0)], axis=-1)
    image = _curves.draw(path[None])[0]
    distance = np.arange(28) - 14.0
    ink = 4 * np.exp(-(distance**2) / (2 * _curves.STROKE**2))
    expected = np.broadcast_to((1 - np.exp(-ink))[:, None], (28, 28))
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_curves_are_the_same_every_time_and_fewer_are_the_first_of_more():
    images = _curves.images(_curves.CHUNK + 7, seed=0)
    np.testing.assert_array_equal(images, _curves.images(_curves.CHUNK + 7, seed=0))
    np.testing.assert_allclose(images[:5], _curves.images(5, seed=0), atol=1e-6)
    assert not np.array_equal(images, _curves.images(_curves.CHUNK + 7, seed=1))


def test_pixels_are_bernoulli_variables():
    logits = np.array([[0.0, math.log(3)], [2.0, -1.0]])
    targets = np.array([[1.0, 0.0], [0.25, 1.0]])
    chances = 1 / (1 + np.exp(-logits))
    each = targets * np.log(chances) + (1 - targets) * np.log(1 - chances)
    assert np.sum(each[0]) == pytest.approx(math.log(1 / 2) + math.log(1 / 4))
    got = bernoulli(jnp.asarray(logits), jnp.asarray(targets))
    assert float(got) == pytest.approx(-np.mean(np.sum(each, axis=1)), rel=1e-6)


def test_a_network_has_the_activation_it_is_given():
    x = np.array([[1.0, -2.0]])
    model = MLP((2, 1), use_bias=False, activation=nn.relu)
    params = {
        "Dense_0": {"kernel": jnp.array([[1.0, 1.0], [0.0, 1.0]])},
        "Dense_1": {"kernel": jnp.array([[3.0], [5.0]])},
    }
    assert model.apply({"params": params}, x) == pytest.approx(np.array([[3.0]]))


@pytest.fixture
def verse(tmp_path):
    path = tmp_path / "verse.txt"
    path.write_text("ab\nü" * 500, encoding="utf-8")
    return path


def test_a_text_is_read_with_the_characters_it_has(verse):
    codes, vocabulary = text.read(verse)
    assert vocabulary == 4
    # In the order of their code points: newline, a, b, ü.
    np.testing.assert_array_equal(codes, [1, 2, 0, 3] * 500)


def test_a_task_on_a_text_of_ones_own(verse):
    task = tasks.load("shakespeare", text=str(verse))
    assert (task.model.vocabulary, task.model.blocks, task.model.width) == (4, 4, 128)
    assert "verse.txt" in task.title
    assert task.train["x"].shape == ((1800 - 1) // 64, 64)
    assert task.test["x"].shape == ((200 - 1) // 64, 64)
    bundled = tasks.load("shakespeare")
    assert bundled.model.vocabulary == text.VOCABULARY
    assert "standard library" in bundled.title
    assert (bundled.steps, tasks.load("shakespeare_full").steps) == (600, 2000)
    assert len(tasks.load("transformer", text=str(verse)).train["x"]) > 1000


def test_a_record_on_another_text_is_none(verse, tmp_path):
    bundled = tasks.load("shakespeare", quick=True)
    record = {
        "job": "whiten",
        "task": "shakespeare",
        "title": bundled.title,
        "steps": bundled.steps,
        "optimizers": {"adam": {"curves": []}},
    }
    (tmp_path / "whiten-shakespeare.json").write_text(json.dumps(record))
    options = Options(tasks=(), optimizers=(), seeds=1, out=str(tmp_path))
    assert list(tuning.recorded("shakespeare", bundled, options)) == ["adam"]
    other = tasks.load("shakespeare", quick=True, text=str(verse))
    assert tuning.recorded("shakespeare", other, options) == {}


def test_a_text_that_is_missing_or_short_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`--text` must name a file, got"):
        tasks.load("shakespeare", text=str(tmp_path))
    short = tmp_path / "short.txt"
    short.write_text("x" * (text.SHORTEST - 1))
    with pytest.raises(ValueError, match=r"at least 1280 characters, got 1279 in"):
        tasks.load("shakespeare", text=str(short))
    short.write_text("x" * text.SHORTEST)
    task = tasks.load("shakespeare", text=str(short))
    assert len(task.train["x"]) >= task.batch_size
    assert len(task.test["x"]) >= 1

"""What a step costs as one size grows: models, counts, tables and curves."""

import json

import jax
import pytest
from matplotlib.figure import Figure

from benchmarks import driver
from benchmarks.growth import curves
from benchmarks.growth.measure import compiled, measure, start
from benchmarks.growth.sweeps import SWEEPS
from benchmarks.jobs import growth
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.steps import QUICK, bytes_of
from linboost_optax import linen
from linboost_optax._taps.work import count

PNG = b"\x89PNG\r\n\x1a\n"
# Weights of a model, biases included, by the size that grows; counted by hand.
TRANSFORMER = 2 * (2 * 2 * 128 + 4 * 129 * 128 + 129 * 512 + 513 * 128)
PARAMETERS = {
    "width": lambda size: 3 * (size + 1) * size,
    "depth": lambda size: size * (129 * 256 + 257 * 128),
    "batch": lambda size: 3 * 257 * 256,
    "outputs": lambda size: 513 * 512 + 513 * size,
    "tokens": lambda size: (256 + size) * 128 + TRANSFORMER + 2 * 128 + 129 * 256,
}


@pytest.mark.parametrize("name", SWEEPS)
def test_the_size_that_grows_is_the_one_of_the_sweep(name):
    sweep = SWEEPS[name]
    assert list(sweep.sizes) == sorted(sweep.sizes)
    for size in (sweep.quick[0], sweep.sizes[0]):
        point = sweep.build(size)
        params = jax.eval_shape(lambda point=point: start(point))
        assert bytes_of(params) == 4 * PARAMETERS[name](size)
        loss = jax.eval_shape(point.loss, params, point.batch)
        assert loss.shape == ()
        rows = {"batch": (size,), "tokens": (4, size)}.get(name, (128,))
        assert point.batch[0].shape[: len(rows)] == rows


@pytest.mark.parametrize("name", ["width", "batch", "outputs", "tokens"])
def test_operations_are_about_those_that_xla_counts(name, optimized):
    """Where there is no loop, whose body XLA counts once."""
    point = SWEEPS[name].build(SWEEPS[name].quick[1])
    params = jax.eval_shape(lambda: start(point))
    gradient = jax.value_and_grad(point.loss)
    program = jax.jit(gradient).lower(params, point.batch).compile()
    counted = count(gradient, params, point.batch).always
    assert counted == pytest.approx(program.cost_analysis()["flops"], rel=0.02)


def test_blocks_in_a_loop_count_each():
    few, many = (
        count(jax.value_and_grad(point.loss), start(point), point.batch).always
        for point in (SWEEPS["depth"].build(size) for size in (1, 3))
    )
    # Three products of 128 by 256 and back, forward and twice backward, but for the
    # first input's.
    assert many - few == pytest.approx(2 * 6 * 128 * (2 * 128 * 256), rel=0.03)


def test_facts_of_a_step_are_what_arrays_and_taps_say():
    point = SWEEPS["width"].build(16)
    adam, whiten = (compiled(point, OPTIMIZERS[name]) for name in ("adam", "whiten"))
    weights = PARAMETERS["width"](16)
    assert adam.facts["state_bytes"] == 4 * (2 * weights + 2)
    assert adam.facts["added_flops"] == 0
    taps = linen.taps(point.model, point.batch[0])
    assert whiten.facts["added_flops"] == taps.report().share > 0
    assert whiten.facts["state_bytes"] > adam.facts["state_bytes"]
    assert min(each.facts["compile_seconds"] for each in (adam, whiten)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_the_job_measures_every_size(name, tmp_path, capsys):
    options = ["--quick", "--tasks", name, "--out", str(tmp_path)]
    driver.main(["growth", *options, "--optimizers", "polar"])
    result = json.loads((tmp_path / f"growth-{name}.json").read_text())
    sweep = SWEEPS[name]
    assert [point["size"] for point in result["points"]] == list(sweep.quick)
    for point in result["points"]:
        assert point["parameters"] == PARAMETERS[name](point["size"])
        adam, polar = (point["optimizers"][each] for each in ("adam", "polar"))
        times = polar["block_seconds"][0] / adam["block_seconds"][0]
        assert polar["ratio_quartiles"] == pytest.approx([times] * 3, rel=1e-4)
        assert adam["state_bytes"] == 4 * (2 * point["parameters"] + 2)
    assert growth.describe(result) in capsys.readouterr().out
    assert (tmp_path / f"growth-{name}.png").read_bytes().startswith(PNG)


def test_a_point_has_its_optimizers():
    found = measure(SWEEPS["width"].build(8), ("adam", "whiten"), QUICK)
    assert found["parameters"] == PARAMETERS["width"](8)
    assert list(found["optimizers"]) == ["adam", "whiten"]
    assert found["optimizers"]["adam"]["ratio_quartiles"] == [1, 1, 1]


def entry(label, ratios, compiling=2.0, state=2**20, added=0.0):
    return {
        "label": label,
        "block_seconds": [0.2, 0.1, 0.4],
        "ratio_quartiles": ratios,
        "compile_seconds": compiling,
        "state_bytes": state,
        "added_flops": added,
    }


@pytest.fixture
def result():
    def point(size, *ours):
        adam = entry("Adam", [1.0, 1.0, 1.0])
        return {"size": size, "optimizers": {"adam": adam, "polar": entry(*ours)}}

    return {
        "title": "Width of layers",
        "axis": "width",
        "block": 10,
        "points": [
            point(64, "polar", [2.0, 3.0, 4.0], 5.0, 2**21, 0.5),
            point(1024, "polar", [1.0, 1.25, 1.5], 4.0, 2**19, 0.123),
        ],
    }


def rows_of(text):
    lines = text.splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_table_has_a_row_for_every_optimizer_and_size(result):
    header, _, *rows = rows_of(growth.describe(result))
    assert header[:3] == ["optimizer", "width", "ms a step"]
    one = "1.00 [1.00, 1.00]"
    adam = ["20.00", one, "2.00", "1.00x", "1.00", "1.00x", "0.0%"]
    first = ["20.00", "3.00 [2.00, 4.00]", "5.00", "2.50x", "2.00", "2.00x", "50.0%"]
    last = ["20.00", "1.25 [1.00, 1.50]", "4.00", "2.00x", "0.50", "0.50x", "12.3%"]
    assert rows == [
        ["Adam", "64", *adam],
        ["Adam", "1,024", *adam],
        ["polar", "64", *first],
        ["polar", "1,024", *last],
    ]


def test_the_ends_of_sweeps_beside_each_other(result):
    _, _, *rows = rows_of(growth.across([result, result | {"axis": "depth"}]))
    ends = ["3.00x to 1.25x", "2.50x to 2.00x", "2.00x to 0.50x", "50.0% to 12.3%"]
    assert rows == [
        ["width, 64 to 1,024", "polar", *ends],
        ["depth, 64 to 1,024", "polar", *ends],
    ]


def test_curves_have_what_the_result_has(result):
    figure = Figure()
    time, state = figure.subplots(1, 2)
    curves.step_time(time, result)
    curves.state_bytes(state, result)
    for axis, heights in ((time, [3.0, 1.25]), (state, [2.0, 0.5])):
        line = axis.get_lines()[1]  # the first is one, Adam's
        assert list(line.get_xdata()) == [64, 1024]
        assert list(line.get_ydata()) == heights
        assert axis.get_xscale() == "log"
        assert axis.get_ylim()[0] == 0
    assert time.get_ylim()[1] > 4  # the upper quartile
    assert list(time.get_legend_handles_labels()[1]) == ["polar"]


def test_optimizers_differ_without_colour():
    marks = [curves.mark(name, number) for number, name in enumerate(OPTIMIZERS)]
    looks = [
        (each["marker"], each["linestyle"], each["markerfacecolor"]) for each in marks
    ]
    assert len(set(looks)) == len(looks)

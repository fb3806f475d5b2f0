"""What devices say and hold: read from a program, measured, and put into tables."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from benchmarks import driver, steps
from benchmarks.jobs import scaling
from benchmarks.scaling import collectives, devices, measure, worker
from benchmarks.scaling.collectives import Collective
from benchmarks.scaling.layouts import LAYOUTS

PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %whole = f32[16,8]{1,0} all-gather(%x), channel_id=2, dimensions={0}
  %part = f32[4,8]{1,0} reduce-scatter(%whole), channel_id=3, to_apply=%add
  ROOT %next = (s32[], f32[4,8]{1,0}) tuple(%i, %part)
}

%condition (q: (s32[], f32[4,8])) -> pred[] {
  %q = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%idle (r: f32[4,8]) -> f32[4,8] {
  ROOT %r = f32[4,8]{1,0} parameter(0)
}

%refreshed (s: f32[4,8]) -> f32[4,8] {
  %s = f32[4,8]{1,0} parameter(0)
  ROOT %moved = f32[4,8]{1,0} collective-permute(%s), channel_id=4
}

%chosen (t: f32[4,8], u: s32[]) -> f32[4,8] {
  %t = f32[4,8]{1,0} parameter(0)
  %u = s32[] parameter(1)
  ROOT %either = f32[4,8]{1,0} conditional(%u, %t, %t), branch_computations={%idle, %refreshed}
}

ENTRY %main (x: f32[4,8], n: s32[], h: bf16[6], ok: pred[]) -> (f32[4,8], bf16[6]) {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %h = bf16[6]{0} parameter(2)
  %ok = pred[] parameter(3)
  %sums = (f32[4,8]{1,0}, bf16[6]{0}, /*index=2*/pred[]) all-reduce(%x.1, %h, /*index=2*/%ok), channel_id=1, to_apply=%add, metadata={op_name="jit(step)/all-gather(f32[9])"}
  %start = (s32[], f32[4,8]{1,0}) tuple(%n, %x.1)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  %z = f32[4,8]{1,0} call(%y, %n), to_apply=%chosen
  %swapped = f32[4,8]{1,0} all-to-all(%z), channel_id=5, dimensions={0}
  ROOT %out = (f32[4,8]{1,0}, bf16[6]{0}) tuple(%swapped, %h)
}
"""  # noqa: E501
TRIPS = ', backend_config={"known_trip_count":{"n":"3"}}'


def test_collectives_are_read_with_their_sizes_loops_and_branches():
    assert collectives.read(PROGRAM) == [
        # 32 numbers of four bytes, 6 of two, one truth value of one.
        Collective("all-reduce", 39, 32 * 4 + 6 * 2 + 1),
        # What one of four devices has is a quarter; the whole is said, three times.
        Collective("all-gather", 128, 512, times=3),
        Collective("reduce-scatter", 128, 512, times=3),
        Collective("collective-permute", 32, 128, branch=True),
        Collective("all-to-all", 32, 128),
    ]


def test_a_summary_tells_loops_out():
    twice = [Collective("all-gather", 5, 20, times=3), Collective("all-gather", 1, 2)]
    assert collectives.summary(twice) == {
        "all-gather": {"count": 4, "numbers": 16, "bytes": 62}
    }
    assert collectives.summary([]) == {}


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match=r"turns, got no known_trip_count of %loop\."):
        collectives.read(PROGRAM.replace(TRIPS, ""))
    # A loop that says nothing may turn as often as it likes.
    silent = PROGRAM.replace(TRIPS, "").replace("body=%body", "body=%idle")
    assert len(collectives.read(silent)) == 3
    with pytest.raises(ValueError, match="got all-to-all-start as %swapped"):
        collectives.read(PROGRAM.replace("all-to-all(", "all-to-all-start("))
    with pytest.raises(ValueError, match=r"with an ENTRY, got 'module @jit_step'"):
        collectives.read("module @jit_step")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("data", 16 * 24 + 24 * 16 + 16 * 8 + 24 + 16 + 8),
        ("fsdp", (16 * 24 + 24 * 16 + 16 * 8) // 8 + 24 + 16 + 8),
        ("output", (16 * 24 + 24 * 16 + 16 * 8 + 24 + 16 + 8) // 8),
        ("stack", 8 * 16 + 16 + 16 * 8 + 8),  # one block of eight
    ],
)
def test_a_device_of_eight_holds_its_part_of_the_parameters(name, numbers):
    layout = LAYOUTS[name]
    model, features = layout.build(True)
    x = jax.ShapeDtypeStruct((8, features), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shardings = jax.tree.map(
        lambda leaf: NamedSharding(mesh, layout.spec(leaf.ndim)), params
    )
    assert measure.bytes_of_one_device(params, shardings) == 4 * numbers


def test_what_is_not_finite_is_not_timed():
    step = steps.Step(lambda *args: (*args[:2], jnp.nan), 0, 0, {})
    batch = (jnp.ones(1), jnp.ones(1))
    with pytest.raises(
        FloatingPointError, match="under `adam` must be finite, got nan"
    ):
        steps.time_all({"adam": step}, batch, steps.QUICK)


def test_devices_of_a_cpu_keep_flags_and_get_only_those_that_xla_knows(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--of_mine")
    order = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    count = "--xla_force_host_platform_device_count=4"
    for version, flags in (
        ("0.10.2", ["--of_mine", order, count]),
        ("0.12.0", ["--of_mine", count]),
    ):
        monkeypatch.setattr(devices, "version", lambda package, found=version: found)
        assert devices.environment(4)["XLA_FLAGS"].split() == flags


def test_a_process_names_what_it_was_not_given(capsys):
    rest = ["--rows", "8", "--optimizers"]
    count = jax.device_count()
    with pytest.raises(SystemExit):
        worker.main(["data", str(count + 1), *rest, "adam"])
    said = capsys.readouterr().err
    assert f"got {count + 1} where it has {count}. Set XLA_FLAGS=--xla_force" in said
    with pytest.raises(SystemExit):
        worker.main(["data", str(count), *rest, "polar", "adam"])
    assert "must begin with adam" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_fails_fails_the_job_and_says_why():
    odd = worker.Work("data", devices=2, rows=3, optimizers=("adam",), quick=True)
    with pytest.raises(RuntimeError, match=r"must end with 0, got 1(.|\n)*divisible"):
        worker.launch(odd)


@pytest.mark.slow
def test_the_job_measures_every_number_of_devices(tmp_path, capsys):
    options = ["--quick", "--tasks", "data", "--out", str(tmp_path)]
    driver.main(["scaling", *options, "--optimizers", "whiten"])
    result = json.loads((tmp_path / "scaling-data.json").read_text())
    runs = {(run["devices"], run["batch"]): run["optimizers"] for run in result["runs"]}
    assert list(runs) == [(1, 16), (2, 16), (1, 8)]
    for run in runs.values():
        assert list(run) == ["adam", "whiten"]
        for entry in run.values():
            assert len(entry["block_seconds"]) == 1
            assert entry["temporary_bytes"] > 0
        times = run["whiten"]["block_seconds"][0] / run["adam"]["block_seconds"][0]
        assert run["whiten"]["ratio_quartiles"] == pytest.approx([times] * 3, rel=1e-4)
    alone, together = runs[1, 16], runs[2, 16]
    # One device has none to talk to.
    assert alone["adam"]["every_step"] == alone["whiten"]["every_step"] == {}
    # Two sum gradients and the loss, and of whitening second moments of inputs.
    weights = (16 + 1) * 24 + (24 + 1) * 16 + (16 + 1) * 8
    sums = together["adam"]["every_step"]["all-reduce"]
    assert (sums["numbers"], sums["bytes"]) == (weights + 1, 4 * (weights + 1))
    more = together["whiten"]["every_step"]["all-reduce"]["numbers"] - sums["numbers"]
    assert more >= 16**2 + 24**2 + 16**2
    # Two moments of every weight and a count, on either.
    for run in (alone, together):
        assert run["adam"]["state_bytes"] == 4 * (2 * weights + 2)
        assert run["whiten"]["state_bytes"] > run["adam"]["state_bytes"]
    assert scaling.describe(result) in capsys.readouterr().out


def entry(label, state, count, said, branches=None):
    return {
        "label": label,
        "every_step": {
            "all-reduce": {"count": count, "numbers": 0, "bytes": said},
            "all-gather": {"count": 1, "numbers": 0, "bytes": 2**19},
        },
        "in_branches": branches or {},
        "state_bytes": state,
        "temporary_bytes": 2**18,
        "ratio_quartiles": [1.25, 1.5, 2.0],
    }


def test_the_tables_put_devices_beside_each_other():
    refresh = {"all-reduce": {"count": 5, "numbers": 0, "bytes": 2**18}}
    few = {"adam": entry("Adam", 2**21, 1, 0), "polar": entry("polar", 2**22, 2, 2**20)}
    many = {
        "adam": entry("Adam", 2**20, 3, 2**20),
        "polar": entry("polar", 2**20, 4, 2**21, refresh),
    }
    sizes = {(1, 8): few, (2, 8): many, (1, 4): few}
    result = {
        "devices": [1, 2],
        "rows": 8,
        "runs": [
            {"devices": devices, "batch": batch, "optimizers": found}
            for (devices, batch), found in sizes.items()
        ],
    }
    text = scaling.describe(result)
    assert text.startswith("8 rows in all:\n\n| optimizer")
    assert "a device:" not in text
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.split("\n")[4:]]
    time = "1.50 [1.25, 2.00]"
    assert rows == [
        ["Adam", "1", "2", "0.50", "2.00", "100%", "0.25", time],
        ["Adam", "2", "4", "1.50", "1.00", "50%", "0.25", time],
        ["polar", "1", "3", "1.50", "4.00", "100%", "0.25", time],
        ["polar", "2", "5 (+5)", "2.50 (+0.25)", "1.00", "25%", "0.25", time],
    ]
    # As many rows on each: the batch of two devices is that of both ways.
    first, second = scaling.describe(result | {"rows_a_device": 4}).split("\n\n4 rows")
    assert first == text
    assert second == " a device:" + text.removeprefix("8 rows in all:")

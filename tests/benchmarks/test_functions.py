"""Functions of engineering: against formulas written anew, one row at a time."""

import math

import numpy as np
import pytest

from benchmarks.jobs import ills_regressor
from benchmarks.regression.functions import FUNCTIONS


def borehole(rw, r, tu, hu, tl, hl, length, kw):
    resistance = math.log(r) - math.log(rw)
    terms = resistance + 2 * length * tu / (rw * rw * kw) + resistance * tu / tl
    return 2 * math.pi * tu * (hu - hl) / terms


def piston(m, s, v0, k, p0, ta, t0):
    """The volume is the root of k V^2 / S^2 - A V / S = P0 V0 Ta / T0."""
    a = p0 * s + 19.62 * m - k * v0 / s
    gas = p0 * v0 * ta / t0
    volume = np.roots([k / s**2, a / s, -gas]).max()
    return 2 * math.pi / math.sqrt((k + s**2 * gas / volume**2) / m)


def robot_arm(*row):
    end = 0j
    direction = 1 + 0j
    for angle, length in zip(row[:4], row[4:], strict=True):
        direction *= complex(math.cos(angle), math.sin(angle))
        end += length * direction
    return abs(end)


def wing_weight(sw, wfw, a, sweep, q, taper, tc, nz, wdg, wp):
    cosine = math.cos(sweep * math.pi / 180)
    logs = 0.758 * math.log(sw) + 0.0035 * math.log(wfw) + 0.6 * math.log(a)
    logs += -1.2 * math.log(cosine) + 0.006 * math.log(q) + 0.04 * math.log(taper)
    logs += -0.3 * math.log(100 * tc / cosine) + 0.49 * math.log(nz * wdg)
    return 0.036 * math.exp(logs) + sw * wp


@pytest.mark.parametrize(
    "formula", [borehole, piston, robot_arm, wing_weight], ids=lambda f: f.__name__
)
def test_functions_are_their_formulas(formula):
    x, y = FUNCTIONS[formula.__name__].draw(0)
    assert y.shape == (1500, 1)
    for row, value in zip(x[:20].tolist(), y[:20, 0], strict=True):
        assert value == pytest.approx(formula(*row), rel=1e-9)
    assert not np.array_equal(FUNCTIONS[formula.__name__].draw(1)[0], x)


def test_noise_is_on_all_rows_that_are_learnt_from_and_on_no_other():
    clean, noisy = (ills_regressor.load("piston", noise, 3) for noise in (0.0, 0.3))
    np.testing.assert_array_equal(clean.seen[0], noisy.seen[0])
    moved = noisy.seen[1] - clean.seen[1]
    assert np.all(moved != 0)
    assert moved.std() == pytest.approx(0.3, rel=0.1)
    for before, after in zip(clean.test, noisy.test, strict=True):
        np.testing.assert_array_equal(before, after)
    assert (len(clean.seen[0]), len(clean.test[0])) == (1200, 300)

"""Functions of engineering that no default was chosen on; inputs are uniform.

Formulas and ranges as Surjanovic and Bingham's Virtual Library of Simulation
Experiments has them, with the sources that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.regression.problems import Problem, Rows

ROWS = 1500
Interval = tuple[float, float]

FUNCTIONS: dict[str, Problem] = {}


def function(
    ranges: Sequence[Interval], *hidden: int
) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """List a function of as many arguments as ranges, under its own name."""

    def add(of: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def draw(seed: int) -> Rows:
            low, high = np.array(ranges, float).T
            x = np.random.default_rng(seed).uniform(low, high, (ROWS, len(low)))
            return x, of(*x.T)[:, None]

        FUNCTIONS[of.__name__] = Problem(draw, hidden)
        return of

    return add


@function(
    (
        (0.05, 0.15),
        (100, 50_000),
        (63_070, 115_600),
        (990, 1110),
        (63.1, 116),
        (700, 820),
        (1120, 1680),
        (9855, 12_045),
    ),
    20,
)
def borehole(rw, r, upper, head_upper, lower, head_lower, length, conductivity):
    """Flow of water through a borehole; Morris, Mitchell and Ylvisaker (1993)."""
    log = np.log(r / rw)
    leak = 2 * length * upper / (log * rw**2 * conductivity)
    return (
        2
        * np.pi
        * upper
        * (head_upper - head_lower)
        / (log * (1 + leak + upper / lower))
    )


@function(
    (
        (30, 60),
        (0.005, 0.020),
        (0.002, 0.010),
        (1000, 5000),
        (90_000, 110_000),
        (290, 296),
        (340, 360),
    ),
    20,
)
def piston(mass, surface, volume0, spring, pressure, ambient, filling):
    """Seconds a cycle of a piston; Kenett and Zacks (1998)."""
    force = pressure * surface + 19.62 * mass - spring * volume0 / surface
    gas = pressure * volume0 / filling * ambient
    volume = surface / (2 * spring) * (np.sqrt(force**2 + 4 * spring * gas) - force)
    return 2 * np.pi * np.sqrt(mass / (spring + surface**2 * gas / volume**2))


@function(((0, 2 * np.pi),) * 4 + ((0, 1),) * 4, 20, 20)
def robot_arm(*angles_and_lengths):
    """How far an arm of four segments reaches; An and Owen (2001)."""
    angles, lengths = np.split(np.array(angles_and_lengths), 2)
    directions = np.cumsum(angles, axis=0)
    reach = [np.sum(lengths * of(directions), axis=0) for of in (np.cos, np.sin)]
    return np.hypot(*reach)


@function(
    (
        (150, 200),
        (220, 300),
        (6, 10),
        (-10, 10),
        (16, 45),
        (0.5, 1),
        (0.08, 0.18),
        (2.5, 6),
        (1700, 2500),
        (0.025, 0.08),
    ),
    20,
)
def wing_weight(area, fuel, aspect, sweep, q, taper, thickness, load, gross, paint):
    """Weight of a wing of a light aircraft; Forrester, Sobester and Keane (2008)."""
    cosine = np.cos(np.deg2rad(sweep))
    return (
        0.036
        * area**0.758
        * fuel**0.0035
        * (aspect / cosine**2) ** 0.6
        * q**0.006
        * taper**0.04
        * (100 * thickness / cosine) ** -0.3
        * (load * gross) ** 0.49
        + area * paint
    )

"""Curves: images of smooth strokes through three random points, no download."""

from __future__ import annotations

import numpy as np

SIZE = 28
MARGIN = 2.0  # pixels between the points and the border
STROKE = 0.6  # standard deviation of the pen, in pixels
SAMPLES = 128  # of a curve: closer together than the pen is wide
CHUNK = 500  # images drawn at a time, so that they stay in the cache


def images(count: int, seed: int) -> np.ndarray:
    """Images [count, 28, 28] in [0, 1]; fewer are the first of more."""
    drawn = np.empty((count, SIZE, SIZE), np.float32)
    through = points(count, seed)
    for start in range(0, count, CHUNK):
        chunk = slice(start, start + CHUNK)
        drawn[chunk] = draw(spline(through[chunk], np.linspace(0, 1, SAMPLES)))
    return drawn


def points(count: int, seed: int) -> np.ndarray:
    """The points [image, 3, (x, y)] that curves go through, in this order."""
    rng = np.random.default_rng(seed)
    return rng.uniform(MARGIN, SIZE - 1 - MARGIN, (count, 3, 2)).astype(np.float32)


def spline(through: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Natural cubic splines [image, time, (x, y)], at their points at 0, 1/2 and 1.

    A natural spline bends at none of its ends: with the bend `m` in the middle, which
    is thrice the second difference over the square of the interval over two, each half
    is its chord plus a cubic that vanishes at both of its ends.
    """
    first, middle, last = (through[:, None, i] for i in range(3))
    u = 1 - np.abs(2 * times.astype(through.dtype) - 1)  # 0 at the ends, 1 between
    u = u[None, :, None]
    end = np.where(times[None, :, None] <= 0.5, first, last)
    second_difference = first - 2 * middle + last
    return end + (middle - end) * u + second_difference * (u**3 - u) / 4


def draw(path: np.ndarray) -> np.ndarray:
    """Images [image, 28, 28] of paths [image, time, (x, y)] under a Gaussian pen.

    Ink is the integral of the pen along the path, and saturates.
    """
    lengths = np.linalg.norm(np.diff(path, axis=1), axis=-1)
    ends = np.zeros((len(path), 1), path.dtype)
    weights = (np.hstack([ends, lengths]) + np.hstack([lengths, ends])) / 2
    pixels = np.arange(SIZE, dtype=path.dtype)
    pen = np.exp(-((path[..., None] - pixels) ** 2) / (2 * STROKE**2))
    across, down = pen[:, :, 0], pen[:, :, 1] * weights[..., None]
    # Four times the pen's own width leaves 2 % of white in the middle of a line.
    ink = 4 / (np.sqrt(2 * np.pi, dtype=path.dtype) * STROKE)
    return -np.expm1(-ink * (np.swapaxes(down, 1, 2) @ across))

"""Standardisation of inputs and targets, for estimators."""

from typing import NamedTuple

import numpy as np


class Scaling(NamedTuple):
    """Means and spreads of columns, in float64; what is constant has spread 1."""

    x_mean: np.ndarray
    x_scale: np.ndarray
    y_mean: np.ndarray
    y_scale: np.ndarray

    @classmethod
    def of(cls, X, y, weights) -> "Scaling":
        return cls(*_moments(X, weights), *_moments(y, weights))

    def inputs(self, X, dtype):
        # Far outside the training range the network is flat; overflow helps nobody.
        scaled = np.clip((X - self.x_mean) / self.x_scale, -1e3, 1e3)
        return scaled.astype(dtype, copy=False)

    def targets(self, y, dtype):
        # Before the cast: an offset would take the digits of what varies.
        return ((y - self.y_mean) / self.y_scale).astype(dtype, copy=False)

    def predictions(self, scaled):
        return (self.y_mean + self.y_scale * scaled).astype(scaled.dtype, copy=False)


def _moments(a, weights):
    a64 = a.astype(np.float64, copy=False)
    mean = np.average(a64, axis=0, weights=weights)
    spread = np.sqrt(np.average((a64 - mean) ** 2, axis=0, weights=weights))
    # A constant column would only have its rounding blown up.
    constant = spread <= 10 * np.finfo(a.dtype).eps * np.abs(mean)
    return mean, np.where(constant | (spread == 0), 1.0, spread)

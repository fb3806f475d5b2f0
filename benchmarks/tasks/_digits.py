"""Handwritten digits: scikit-learn's 1,797 images of 8x8 pixels, no download."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

Split = tuple[np.ndarray, np.ndarray]


def digits(seed: int = 0) -> tuple[Split, Split]:
    """Images [sample, 8, 8] in [0, 1] and labels: 80 % to train, 20 % to test."""
    images, labels = (np.asarray(each) for each in load_digits(return_X_y=True))
    images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8)
    labels = labels.astype(np.int32)
    order = np.random.default_rng(seed).permutation(len(images))
    cut = len(order) * 4 // 5
    train, test = order[:cut], order[cut:]
    return (images[train], labels[train]), (images[test], labels[test])


def shifted(split: Split, size: int, copies: int, seed: int, shift: int = 2) -> Split:
    """Enlarge digits and place each at random on an empty canvas, `copies` times.

    The result looks like MNIST: in [0, 1], mostly zero, strongly correlated
    neighbours. The digit measures `size - 2 * shift` pixels, the canvas `size`.
    """
    images, labels = split
    inner = size - 2 * shift
    stretch = _stretch(inner)
    large = np.einsum("pi,nij,qj->npq", stretch, images, stretch, optimize=True)
    rng = np.random.default_rng(seed)
    canvas = np.zeros((copies, len(images), size, size), np.float32)
    offsets = rng.integers(0, 2 * shift + 1, (copies, len(images), 2))
    for copy, sample in np.ndindex(copies, len(images)):
        row, column = offsets[copy, sample]
        canvas[copy, sample, row : row + inner, column : column + inner] = large[sample]
    return canvas.reshape(-1, size, size), np.tile(labels, copies)


def _stretch(size: int) -> np.ndarray:
    """Matrix [size, 8] of linear interpolation from 8 pixels to `size`."""
    centres = np.clip((np.arange(size) + 0.5) * 8 / size - 0.5, 0, 7)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(8))).astype(np.float32)

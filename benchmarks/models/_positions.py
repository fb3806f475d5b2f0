"""Fixed positions and shifted tokens, the same in every transformer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def sinusoids(length: int, width: int) -> np.ndarray:
    """Sines, then cosines, of wavelengths up to 10000: `[length, width]`."""
    half = width // 2
    rates = 1e4 ** -(np.arange(half) / max(half - 1, 1))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def shifted(tokens: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    """What a decoder reads: every token one later, none across packed sentences."""
    later = jnp.pad(tokens, [(0, 0), (1, 0)])[:, :-1]
    if segments is None:
        return later
    before = jnp.pad(segments, [(0, 0), (1, 0)])[:, :-1]
    return jnp.where(segments == before, later, 0)

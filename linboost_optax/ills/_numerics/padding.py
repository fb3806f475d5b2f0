"""Few numbers of rows, for few programs: what runs on an array is compiled by shape.

Rows of weight 0 are as good as absent wherever samples are looked at, so that data may
be padded with them.
"""

import numpy as np

# A program of a few hundred rows takes seconds to compile and milliseconds to run.
LEAST = 512
# A step of at most an eighth, and of at most so many rows: where a run takes longer
# than its compilation, padding costs below a percent.
_STEPS, _MAX_STEP = 8, 8192


def padded_size(rows: int, least: int = LEAST) -> int:
    """Returns the smallest size for at least ``rows`` rows that arrays should have.

    Args:
      rows: at least 1.
      least: the smallest size, a power of two.

    Returns:
      ``least``, or a size above it: eight in every doubling, every 8,192 rows from
      65,536 on.
    """
    if rows <= least:
        return least
    step = 2 ** ((rows - 1).bit_length() - 1) // _STEPS
    step = max(1, min(step, _MAX_STEP))
    return -(-rows // step) * step


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Returns ``array`` with zeros after its rows, ``rows`` in all; itself if full."""
    missing = rows - len(array)
    if missing == 0:
        return array
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))

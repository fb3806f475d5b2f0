"""Taps: identities whose backward pass emits statistics of a layer's inputs."""

from linboost_optax._taps.primitive import Tap, tap
from linboost_optax._taps.rows import only_rows
from linboost_optax._taps.table import Plain, Taps, check_taps

__all__ = ["Plain", "Tap", "Taps", "check_taps", "only_rows", "tap"]

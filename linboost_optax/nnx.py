"""Flax NNX adapter: describes a model for ILLS."""

from linboost_optax._nnx_network import network

__all__ = ["network"]

"""Flax NNX adapter: describes a model for ILLS."""

from linboost_optax.ills._model.nnx import network

__all__ = ["network"]

"""Kinds of layers: how kernel and inputs become matrices, one file a kind."""

from linboost_optax._kinds.base import Kind
from linboost_optax._kinds.conv import Conv
from linboost_optax._kinds.dense import Dense
from linboost_optax._kinds.embed import Embed
from linboost_optax._kinds.experts import Experts
from linboost_optax._kinds.tied import Tied

__all__ = ["Conv", "Dense", "Embed", "Experts", "Kind", "Tied"]

"""The models of Flax's own examples, written again, at the sizes they have there.

Each is what somebody trains, with the parts that make a model awkward: cells that are
scanned over time, embeddings that are tied to the read-out, caches, parameters in
boxes, random streams, running averages. A new one is a function, and its name here.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.models._example import Example
from benchmarks.models.gemma import gemma
from benchmarks.models.graph import graph, graph_by_hand
from benchmarks.models.imagenet import resnet18, resnet50
from benchmarks.models.lm1b import lm1b, lm1b_tied
from benchmarks.models.lm1b_nnx import lm1b_nnx, lm1b_nnx_tied
from benchmarks.models.mnist import mnist
from benchmarks.models.nlp_seq import nlp_seq
from benchmarks.models.ppo import ppo
from benchmarks.models.seq2seq import seq2seq
from benchmarks.models.sst2 import sst2
from benchmarks.models.vae import vae

__all__ = ["MODELS", "Example"]

MODELS: dict[str, Callable[[bool], Example]] = {
    build.__name__: build
    for build in (
        mnist,
        resnet18,
        resnet50,
        lm1b,
        lm1b_tied,
        lm1b_nnx,
        lm1b_nnx_tied,
        gemma,
        nlp_seq,
        seq2seq,
        sst2,
        vae,
        graph,
        graph_by_hand,
        ppo,
    )
}

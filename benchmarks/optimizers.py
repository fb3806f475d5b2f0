"""The optimizers. A new one is one function under one decorator.

Every function takes a learning-rate schedule and the model's taps (`None` for an
optimizer that taps nothing, the task for one that needs it) and returns an Optax
transformation. Tables have the optimizers in this file's order, from the lowest
decorator of a function up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from optax import contrib

import linboost_optax as lbo
from benchmarks.job import BASELINE
from benchmarks.rivals.kfac import kfac
from benchmarks.rivals.newton_muon import InputInverse
from benchmarks.rivals.psgd import kron
from benchmarks.rivals.shampoo import shampoo
from benchmarks.rivals.soap import soap
from benchmarks.tasks._models import STACK
from linboost_optax.extend import Rule

Build = Callable[[optax.Schedule, Any], optax.GradientTransformation]


# Gram matrices of as many rows as the default takes; conjugate gradients take all.
GRAM = lbo.Gram(max_samples=lbo.Auto().max_samples)


@dataclass(frozen=True)
class Optimizer:
    """How to build an optimizer, what it taps, and where its learning rates lie."""

    label: str
    build: Build
    centre: float  # the middle of its learning rates, on a logarithmic scale
    statistic: Rule | None = None  # of `linen.taps`; None: no taps
    jobs: tuple[str, ...] = ()  # where it competes unless told otherwise
    needs: tuple[str, ...] = ()  # of a task besides gradients; see `needs.py`


OPTIMIZERS: dict[str, Optimizer] = {}


def optimizer(
    name: str,
    label: str,
    centre: float,
    statistic: Rule | None = None,
    jobs: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
) -> Callable[[Build], Build]:
    """List a function as an optimizer; several times under several names."""

    def add(build: Build) -> Build:
        OPTIMIZERS[name] = Optimizer(label, build, centre, statistic, jobs, needs)
        return build

    return add


def of(job: str) -> tuple[str, ...]:
    """The names of a job's optimizers; the baseline is in all of them."""
    return tuple(
        name
        for name, entry in OPTIMIZERS.items()
        if name == BASELINE or job in entry.jobs
    )


def grid(centre: float, points: int) -> list[float]:
    """Learning rates over a 100x range around the centre, two digits each."""
    return [float(f"{rate:.2g}") for rate in centre * np.logspace(-1, 1, points)]


@optimizer(BASELINE, "Adam", 1e-2)
def adam(schedule: optax.Schedule, taps: Any) -> optax.GradientTransformation:
    """The baseline."""
    del taps
    return optax.adam(schedule)


@optimizer("muon", "Muon", 1e-2, jobs=("main", "whiten", "step_time", "transfer"))
def muon(schedule: optax.Schedule, taps: Any) -> optax.GradientTransformation:
    """Muon on kernels, its own Adam on biases, norms and embeddings.

    `consistent_rms` gives both updates the same scale, so that one learning rate
    serves. Without it and with a tenth of the rate for Adam, the transformer ended
    worse (2.17 against 2.09), the recurrent network equal, the digits autoencoder
    slightly better (0.17 against 0.18).
    """
    del taps
    return contrib.muon(
        schedule, muon_weight_dimension_numbers=kernel_axes, consistent_rms=0.2
    )


@optimizer("lnb_exact", "LNB, Gram matrices", 0.3, GRAM, jobs=("step_time",))
@optimizer(
    "lnb",
    "LNB",
    0.3,
    lbo.Auto(),
    jobs=("main", "sensitivity", "whiten", "step_time", "transfer"),
)
@optimizer(
    "lnb_ic", "LNB, incomplete Cholesky", 0.3, lbo.Moments(), jobs=("step_time",)
)
def lnb(schedule: optax.Schedule, taps: Any) -> optax.GradientTransformation:
    """LNB, its solver by default: incomplete Cholesky on moments, else Cholesky."""
    return lbo.lnb(schedule, taps)


@optimizer("lnb_cg_inputs", "LNB, matrix-free CG", 0.3, lbo.Inputs())
@optimizer("lnb_cg", "LNB, conjugate gradient", 0.3, lbo.Gram(), jobs=("step_time",))
def lnb_conjugate_gradient(schedule: optax.Schedule, taps: Any):
    return lbo.lnb(schedule, taps, solver=lbo.ConjugateGradient())


@optimizer(
    "whiten_exact",
    "whiten(Adam), Gram matrices",
    3e-3,
    GRAM,
    jobs=("memory", "step_time"),
)
@optimizer(
    "whiten",
    "whiten(Adam)",
    3e-3,
    lbo.Auto(),
    jobs=("main", "memory", "sensitivity", "whiten", "step_time", "transfer"),
)
@optimizer(
    "whiten_ic",
    "whiten(Adam), incomplete Cholesky",
    3e-3,
    lbo.Moments(),
    jobs=("memory", "whiten", "step_time"),
)
def whitened_adam(schedule: optax.Schedule, taps: Any) -> optax.GradientTransformation:
    """Adam in whitened coordinates, solver by default as for LNB."""
    return lbo.whiten(optax.adam(schedule), taps)


@optimizer(
    "polar",
    "polar",
    1e-2,
    lbo.Auto(),
    jobs=("main", "sensitivity", "whiten", "step_time", "transfer"),
)
@optimizer("polar_ic", "polar, moments", 1e-2, lbo.Moments(), jobs=("step_time",))
def polar(schedule: optax.Schedule, taps: Any) -> optax.GradientTransformation:
    """Orthogonalised momentum in whitened coordinates: the recommended recipe."""
    return lbo.polar(schedule, taps)


@optimizer("soap", "SOAP", 1e-2, jobs=("main", "whiten", "transfer"))
def soap_both_sides(schedule: optax.Schedule, taps: Any):
    """SOAP with full matrices on both sides, eigenvectors remade every 10 steps."""
    del taps
    return soap(schedule)


@optimizer("shampoo", "Shampoo", 1e-2)
def shampoo_on_adam(schedule: optax.Schedule, taps: Any):
    """Shampoo with moving averages, grafted onto Adam."""
    del taps
    return shampoo(schedule)


@optimizer("newton_muon", "Newton-Muon", 1e-2, GRAM)
def newton_muon(schedule: optax.Schedule, taps: Any):
    """Muon, as above, on gradients divided by the second moment of the inputs."""
    return lbo.whiten(muon(schedule, taps), taps, InputInverse())


@optimizer("psgd", "PSGD Kron", 3e-3)
def psgd(schedule: optax.Schedule, taps: Any):
    """PSGD with Kronecker-factored preconditioners, by its package's defaults."""
    del taps
    return kron(schedule)


@optimizer("kfac", "K-FAC", 3e-1, needs=("task", "batch"))
def kfac_fixed(schedule: optax.Schedule, task: Any):
    """K-FAC with a fixed damping, momentum 0.9."""
    return kfac(schedule, task, damping=1.0)


@optimizer("kfac_adaptive", "K-FAC, adaptive damping", 3e-1, needs=("task", "batch"))
def kfac_adaptive(schedule: optax.Schedule, task: Any):
    """The same with the damping adapted by the rule of Levenberg and Marquardt."""
    return kfac(schedule, task, damping=1.0, adaptive=True)


@optimizer("lbfgs", "L-BFGS", 1.0, needs=("value", "grad", "value_fn"))
def lbfgs(schedule: optax.Schedule, taps: Any) -> optax.GradientTransformation:
    """L-BFGS with ten pairs and zoom line search, which leaves no rate to choose."""
    del schedule, taps
    return optax.lbfgs()


@optimizer("adamw", "AdamW", 1e-2)
def adamw(schedule: optax.Schedule, taps: Any) -> optax.GradientTransformation:
    """Adam with a decoupled decay of the weights."""
    del taps
    return optax.adamw(schedule, weight_decay=1e-2)


@optimizer("momentum", "SGD, momentum", 1e-1)
def momentum(schedule: optax.Schedule, taps: Any) -> optax.GradientTransformation:
    """Gradient descent with Nesterov's momentum."""
    del taps
    return optax.sgd(schedule, momentum=0.9, nesterov=True)


def kernel_axes(params: optax.Params) -> Any:
    """For Muon: a kernel maps its leading axes to its last; other leaves use Adam.

    Of layers that are stacked each has a kernel of its own.
    """

    def axes(path: Any, leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        first = int(any(part.key == STACK for part in path))
        last = leaf.ndim - 1
        return contrib.MuonDimensionNumbers(tuple(range(first, last)), last)

    return jax.tree_util.tree_map_with_path(axes, params)

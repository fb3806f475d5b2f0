"""Faults planted into trained networks and their data, and rules that look for them.

A rule turns diagnostics into a value for every candidate (a unit, a layer, a row) and
flags those above its limit. It found a fault where that is flagged, and first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from linboost_optax import ills
from linboost_optax.ills import LayerDiagnostics

FEATURES, ROWS, NOISE = 5, 300, 0.1
SHALLOW, DEEP = (12,), (12, 8)
STEPS = 50
# Limits were chosen on seeds below.
FIRST_SEED = 200


class Case(NamedTuple):
    """What is diagnosed, and which candidate has the fault."""

    network: ills.Network
    params: Any
    x: jax.Array
    y: jax.Array
    at: int = 0


@dataclass(frozen=True)
class Rule:
    """How a reader of the diagnostics looks for a fault.

    Attributes:
      text: the rule in words.
      values: of every candidate.
      limit: what is above it is flagged.
    """

    text: str
    values: Callable[[list[LayerDiagnostics]], np.ndarray]
    limit: float


Build = Callable[[int, bool, bool], Case]  # of seed, planted, quick


def unimportance(layers: list[LayerDiagnostics]) -> np.ndarray:
    """Median of a layer's mean weights over each unit's own, all layers' units."""

    def of(layer: LayerDiagnostics) -> np.ndarray:
        mean = layer.weights.mean(axis=0)
        dead = mean == 0
        return np.where(dead, np.inf, np.median(mean) / np.where(dead, 1, mean))

    return np.concatenate([of(layer) for layer in layers])


def saturation(layers: list[LayerDiagnostics]) -> np.ndarray:
    """Mean over a layer's units of the share of samples where they are saturated."""
    return np.array([layer.saturated.mean() for layer in layers])


def pull(layers: list[LayerDiagnostics]) -> np.ndarray:
    """How much change each row asks for, over the median row."""
    total = sum(
        np.sum(layer.weights * np.abs(layer.ideal - layer.pre_activations), axis=1)
        for layer in layers
    )
    return np.asarray(total / np.median(total))


def collinearity(layers: list[LayerDiagnostics]) -> np.ndarray:
    """The least condition number of the first layer's units."""
    return np.array([np.nanmin(layers[0].condition)])


RULES = {
    "dead_unit": Rule(
        "mean weight below a thousandth of its layer's median", unimportance, 1e3
    ),
    "saturated_layer": Rule(
        "more than half of a layer's activations saturated", saturation, 0.5
    ),
    "outlier": Rule(
        "row whose weights times ideal changes exceed twenty times the median's",
        pull,
        20.0,
    ),
    "dependent_inputs": Rule(
        "condition number above 100 in all units of the first layer",
        collinearity,
        100.0,
    ),
}


def teacher(seed: int, x: jax.Array) -> jax.Array:
    """Noisy targets of about unit spread, from a random tanh network."""
    weights = ills.init_mlp(jax.random.key(1000 + seed), (FEATURES, 10, 1))
    weights = [(2 * kernel, bias) for kernel, bias in weights]
    y = ills.predict(ills.network(weights), weights, x)
    noise = jax.random.normal(jax.random.key(2000 + seed), y.shape)
    return (y - jnp.mean(y)) / jnp.std(y) + NOISE * noise


def inputs(seed: int) -> jax.Array:
    """Independent standard normal features."""
    return jax.random.normal(jax.random.key(seed), (ROWS, FEATURES))


def trained(
    seed: int,
    x: jax.Array,
    y: jax.Array,
    quick: bool,
    hidden: tuple[int, ...] = DEEP,
    activation: str = "tanh",
    **options: Any,
) -> Case:
    """A network after some iterations of ILLS from start weights."""
    params = ills.init_mlp(jax.random.key(seed), (FEATURES, *hidden, 1))
    network = ills.network(params, activation)
    steps = 2 if quick else STEPS
    options = {"output_ridge": 1e-4, "max_iter": steps, **options}
    result = ills.fit_ills(network, params, x, y, **options)
    return Case(network, result.params, x, y)


def unheard(seed: int, planted: bool, quick: bool) -> Case:
    """Nothing listens to one unit of the last hidden layer of a trained network."""
    x = inputs(seed)
    case = trained(seed, x, teacher(seed, x), quick)
    unit = seed % DEEP[-1]
    if planted:
        kernel, bias = case.params[-1]
        last = (kernel.at[unit].set(0.0), bias)
        case = case._replace(params=[*case.params[:-1], last])
    return case._replace(at=sum(DEEP[:-1]) + unit)


def never_active(seed: int, planted: bool, quick: bool) -> Case:
    """One rectifier of a trained network is off on all samples."""
    x, unit = inputs(seed), seed % SHALLOW[0]
    case = trained(seed, x, teacher(seed, x), quick, SHALLOW, "relu")
    if planted:
        kernel, bias = case.params[0]
        off = bias.at[unit].set(-float(jnp.max(x @ kernel[:, unit])) - 1)
        case = case._replace(params=[(kernel, off), *case.params[1:]])
    return case._replace(at=unit)


def scaled_layer(seed: int, planted: bool, quick: bool) -> Case:
    """The pre-activations of one layer of a trained network, ten times as large."""
    x, layer = inputs(seed), seed % len(DEEP)
    case = trained(seed, x, teacher(seed, x), quick)
    if planted:
        params = list(case.params)
        kernel, bias = params[layer]
        params[layer] = (10 * kernel, 10 * bias)
        case = case._replace(params=params)
    return case._replace(at=layer)


def scaled_inputs(seed: int, planted: bool, quick: bool) -> Case:
    """Inputs twenty times as large as they should be, at the start weights."""
    del quick
    x = inputs(seed)
    params = ills.init_mlp(jax.random.key(seed), (FEATURES, *DEEP, 1))
    y = teacher(seed, x)
    return Case(ills.network(params), params, 20 * x if planted else x, y)


def outlier(**how: Any) -> Build:
    """One row's target off by ten standard deviations, in training as well."""

    def build(seed: int, planted: bool, quick: bool) -> Case:
        x, row = inputs(seed), seed % ROWS
        y = teacher(seed, x)
        y = y.at[row].add(10.0 if seed % 2 else -10.0) if planted else y
        return trained(seed, x, y, quick, **how)._replace(at=row)

    return build


def dependent(share: float) -> Build:
    """The last feature is the first, but for this share of its own."""

    def build(seed: int, planted: bool, quick: bool) -> Case:
        x = inputs(seed)
        last = (x[:, 0] + share * x[:, -1]) / (1 + share**2) ** 0.5
        x = x.at[:, -1].set(last) if planted else x
        return trained(seed, x, teacher(seed, x), quick, SHALLOW)

    return build


PLANTS: dict[str, dict[str, Build]] = {
    "dead_unit": {
        "outgoing weights of 0, tanh": unheard,
        "never active, relu": never_active,
    },
    "saturated_layer": {
        "trained layer times 10": scaled_layer,
        "inputs times 20, start weights": scaled_inputs,
    },
    "outlier": {
        "trained with it, one layer": outlier(hidden=SHALLOW),
        "trained with it, two layers": outlier(hidden=DEEP),
        "the same, Huber's loss in training": outlier(hidden=DEEP, loss="huber"),
    },
    "dependent_inputs": {
        "two inputs equal but for 0.01": dependent(0.01),
        "two inputs equal but for 0.1": dependent(0.1),
    },
}


def look(rule: Rule, case: Case) -> np.ndarray:
    """The rule's values of a case."""
    return rule.values(ills.ills_diagnostics(*case[:4]))


def search(rule: Rule, build: Build, seed: int, quick: bool) -> dict[str, Any]:
    """One seed with and without the fault."""
    case = build(seed, True, quick)
    values, control = look(rule, case), look(rule, build(seed, False, quick))
    own = values[case.at]
    return {
        "found": bool(own > rule.limit and own == values.max()),
        "alarm": bool(control.max() > rule.limit),
        "planted": float(own),
        "control": float(control.max()),
    }

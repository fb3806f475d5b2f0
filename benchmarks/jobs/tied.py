"""What is best done with an embedding that is the output layer, too.

A small transformer whose embedding is tied, on characters and on words, where most
tokens are rare. All its other layers are preconditioned; the embedding keeps its plain
gradient, or has the metric of one of its uses, or of both. Each at its best learning
rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import linboost_optax as lbo
from benchmarks import analysis
from benchmarks.job import Job, Options, Result
from benchmarks.tables import over_seeds, table
from benchmarks.tasks import text
from benchmarks.tasks._models import Attention
from linboost_optax import linen
from linboost_optax._kinds import Embed, Kind, Tied
from linboost_optax._kinds.base import some_rows
from linboost_optax._layer import Affine, Layer

WIDTH, LENGTH, BATCH, STEPS, WINDOW = 64, 32, 16, 200, 20
WORDS = 1500  # the most frequent ones; all others are one more
RATES = {"lnb": (0.1, 0.3, 1.0), "whiten": (1e-3, 3e-3, 1e-2)}
LABELS = {"lnb": "LNB", "whiten": "whiten(Adam)"}


@dataclass(frozen=True)
class Attend(Kind):
    """An embedding as the output layer alone: its transpose is the kernel."""

    vocabulary: int
    size: int

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """That of the embedding."""
        return (self.vocabulary, self.size)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Of a bias that it does not have."""
        return (self.vocabulary,)

    @property
    def channels(self) -> int:
        """Width of the hidden states."""
        return self.size

    def design(self, x: jax.Array, limit: int | None = None) -> jax.Array:
        """The hidden states, a row each."""
        x = x.reshape(-1, self.size)
        rows = some_rows(len(x), limit)
        return (x if rows is None else x[rows])[None]

    def to_matrix(self, kernel: jax.Array) -> jax.Array:
        """Transposes."""
        return kernel.mT[:, None]

    def from_matrix(self, w: jax.Array) -> jax.Array:
        """Transposes back."""
        return w[:, 0].mT


@dataclass(frozen=True)
class Variant:
    """How the embedding is treated.

    `kind` maps vocabulary and width to the layer that it is to the optimizer, None for
    plain; `scale` multiplies its metric.
    """

    kind: Callable[[int, int], Kind] | None = None
    tied: bool = True
    scale: float = 1.0


VARIANTS: dict[str, Variant] = {
    "plain gradient": Variant(),
    "look-ups": Variant(Embed),
    "output layer": Variant(Attend),
    "both uses": Variant(Tied),
    "both uses, 1/16 of it": Variant(Tied, scale=1 / 16),
    "not tied": Variant(tied=False),
}


class Model(nn.Module):
    """One block; returns logits and the hidden states that they are made of."""

    vocabulary: int
    tied: bool

    @nn.compact
    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        embed = nn.Embed(self.vocabulary, WIDTH, name="embed")
        positions = jnp.arange(tokens.shape[-1])[None]
        x = embed(tokens) + nn.Embed(LENGTH, WIDTH, name="position")(positions)
        x = x + Attention(heads=4)(nn.LayerNorm()(x))
        x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))
        h = nn.LayerNorm()(x)
        if self.tied:
            return embed.attend(h), h
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(h), h


@dataclass(frozen=True)
class Scaled:
    """A solver whose metric is scaled in one layer: steps there are larger."""

    of: lbo.Cholesky
    key: str
    scale: float

    def bind(self, layer: Layer) -> Any:
        """The solver of one layer."""
        return self._scaled(self.of.bind(layer), layer)

    def bind_factor(self, layer: Layer) -> Any:
        """The factor of one layer."""
        return self._scaled(self.of.bind_factor(layer), layer)

    def _scaled(self, bound: Any, layer: Layer) -> Any:
        return ScaledMetric(bound, self.scale) if layer.key == self.key else bound


@dataclass(frozen=True)
class ScaledMetric:
    """A metric times a number."""

    of: Any
    scale: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)  # `init`, `read` and `update`

    def solve(self, state: Any, view: Any, g: Affine) -> Affine:
        """Returns the solution."""
        return _times(self.scale**-1, self.of.solve(state, view, g))

    def whiten(self, state: Any, g: Affine) -> Affine:
        """Returns the gradient in whitened coordinates."""
        return _times(self.scale**-0.5, self.of.whiten(state, g))

    def unwhiten(self, state: Any, u: Affine) -> Affine:
        """Returns the step in real coordinates."""
        return _times(self.scale**-0.5, self.of.unwhiten(state, u))

    def coordinates(self, state: Any, w: Affine) -> Affine:
        """Returns the weights in whitened coordinates."""
        return _times(self.scale**0.5, self.of.coordinates(state, w))


def _times(number: float, affine: Affine) -> Affine:
    return jax.tree.map(lambda leaf: number * leaf, affine)


def corpus(name: str) -> tuple[np.ndarray, int]:
    """The text as integers, and how many different ones there are."""
    codes = text.corpus()
    if name == "characters":
        return codes, text.VOCABULARY
    letters = "".join(chr(code + 31) if code else "\n" for code in codes)
    found = re.findall(r"\w+|[^\w\s]|\n", letters)
    names, counts = np.unique(found, return_counts=True)
    most = names[np.argsort(-counts, kind="stable")[:WORDS]]
    number = {name: i + 1 for i, name in enumerate(most)}
    return np.array([number.get(each, 0) for each in found], np.int32), WORDS + 1


def trainer(name: str, variant: Variant, optimizer: str, steps: int) -> Callable:
    """Maps learning rate and seed to the losses of all steps, compiled."""
    codes, vocabulary = corpus(name)
    data = text.windows(codes, LENGTH)
    x, y = data["x"], data["y"]
    model = Model(vocabulary, variant.tied)
    both = variant.kind is Tied  # which is what taps make of it
    apart = () if both or not variant.tied else "embed"
    found = linen.taps(model, x[:BATCH], exclude=apart)
    layer = None
    if variant.kind is not None and not both:
        layer = _layer(variant.kind(vocabulary, WIDTH))
    taps = replace(found, layers=found.layers + ((layer,) if layer else ()))
    solver = Scaled(lbo.Cholesky(), "embed", variant.scale)

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        logits, h = model.apply({"params": params}, x)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.mean(each), h

    def run(rate: jax.Array, seed: jax.Array) -> jax.Array:
        schedule = optax.cosine_decay_schedule(1.0, steps)

        def rates(count: Any) -> Any:
            return rate * schedule(count)

        if optimizer == "lnb":
            tx = lbo.lnb(rates, taps, solver)
        else:
            tx = lbo.whiten(optax.adam(rates), taps, solver)
        params = model.init(jax.random.key(seed), x[:BATCH])["params"]
        key = jax.random.key(seed + 100)
        order = jax.random.randint(key, (steps, BATCH), 0, len(x))

        def step(carry: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            tapped = linen.value_and_grad(loss_fn, found, has_aux=True)
            (loss, h), grads, stats = tapped(params, x[rows], y[rows])
            if layer is not None:
                stats = stats | {layer.key: _measured(layer, x[rows], h)}
            updates, state = tx.update(grads, state, params, stats=stats)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, tx.init(params)), order)[1]

    return jax.jit(run)


def _layer(kind: Kind) -> Layer:
    return Layer(
        path=("embed",),
        kind=kind,
        statistic=kind.statistic(lbo.Auto()),
        input_shape=(BATCH, LENGTH),
        kernel="embedding",
        bias=None,
    )


def _measured(layer: Layer, tokens: jax.Array, h: jax.Array) -> Any:
    """What the tap of one of the embedding's uses would emit."""
    x = tokens if isinstance(layer.kind, Embed) else h
    return layer.statistic.measure(layer, x, None)


def run(name: str, options: Options) -> Result:
    """Tune and train every variant under both optimizers."""
    steps = 2 * WINDOW if options.quick else STEPS
    cells = [(label, each) for each in RATES for label in VARIANTS]
    if options.quick:
        cells = [cell for cell in cells if cell[0] in ("plain gradient", "both uses")]
    found: dict[str, dict[str, Any]] = {}
    for label, optimizer in tqdm(cells, desc=name):
        train = trainer(name, VARIANTS[label], optimizer, steps)
        rates = RATES[optimizer][:2] if options.quick else RATES[optimizer]
        found.setdefault(optimizer, {})[label] = _tuned(train, rates, options)
    _, vocabulary = corpus(name)
    return {
        "title": f"{name.capitalize()}, {vocabulary:,} tokens",
        "steps": steps,
        "seeds": options.seeds,
        "optimizers_by_variant": {
            optimizer: _figures(rows) for optimizer, rows in found.items()
        },
    }


def _tuned(train: Callable, rates: tuple[float, ...], options: Options) -> dict:
    """The curves of all seeds at the best rate, and what each rate came to."""

    def curve(rate: float, seed: int) -> np.ndarray:
        losses = np.asarray(train(jnp.float32(rate), jnp.int32(seed)), np.float64)
        return np.convolve(losses, np.full(WINDOW, 1 / WINDOW), "valid")

    first = {rate: curve(rate, 0) for rate in rates}
    tuning = {rate: _last(curve) for rate, curve in first.items()}
    edge = None if options.quick else analysis.beyond(tuning)
    if edge is not None:
        first[edge] = curve(edge, 0)
        tuning[edge] = _last(first[edge])
    rate = analysis.lowest(tuning)
    seeds = range(1, options.seeds)
    curves = [first[rate], *(curve(rate, seed) for seed in seeds)]
    return {"rate": rate, "tuning": dict(sorted(tuning.items())), "curves": curves}


def _last(curve: np.ndarray) -> float:
    return float(curve[-1]) if np.isfinite(curve[-1]) else np.inf


def _figures(rows: dict[str, dict]) -> dict[str, dict]:
    """Last losses, and steps to the loss that a plain gradient ends at."""
    goal = median(_last(curve) for curve in rows["plain gradient"]["curves"])
    figures = {}
    for label, row in rows.items():
        reached = [analysis.first_reached(list(c), goal) for c in row["curves"]]
        figures[label] = {
            "learning_rate": row["rate"],
            "tuning": {f"{rate:g}": loss for rate, loss in row["tuning"].items()},
            "losses": [_last(curve) for curve in row["curves"]],
            "steps_to_plain": [None if r is None else r + WINDOW for r in reached],
        }
    return figures


def describe(result: Result) -> str:
    """A row a variant: rate, last loss, steps to where a plain gradient ends."""
    by_optimizer = result["optimizers_by_variant"]
    header = ["The embedding's metric"]
    for optimizer in by_optimizer:
        header += [f"{LABELS[optimizer]}: rate", "loss", "steps to plain's"]
    rows = []
    for label in next(iter(by_optimizer.values())):
        cells = [label]
        for figures in by_optimizer.values():
            row = figures[label]
            cells += [
                f"{row['learning_rate']:g}",
                over_seeds(row["losses"], "{:.3f}"),
                over_seeds(row["steps_to_plain"], "{:.0f}"),
            ]
        rows.append(cells)
    return table(header, rows)


JOB = Job(
    name="tied",
    title="An embedding that is the output layer, too",
    reading=(
        f"A transformer of one block, {WIDTH} wide, whose embedding is tied, for "
        f"{STEPS} steps of {BATCH} x {LENGTH} tokens, all other layers "
        "preconditioned as ever. Losses are of the batches themselves, means of the "
        f"last {WINDOW}; median and range over the seeds, each variant at the rate "
        "that ends lowest on the first seed, of a grid and one beyond its edge. The "
        "last column counts steps to the loss at which a plain gradient of the "
        'embedding ends. "1/16 of it" makes steps of the embedding larger than its '
        "metric asks for: by 16 under LNB, by 4 under whiten(Adam)."
    ),
    tasks=("characters", "words"),
    seeds=3,
    run=run,
    table=describe,
)

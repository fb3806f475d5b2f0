"""Two claims about ILLS on 5-10-1 tanh teachers: recovery without noise, and outliers.

How many noise-free teachers are recovered to a hundredth of their spread, and the clean
test error with 10 % gross outliers over that of the same run without them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.job import Job, Options, Result
from benchmarks.tables import number, table
from linboost_optax import ills

UNITS = 10  # of the teacher
STUDENTS = ((UNITS, 0), (15, 0), (20, 0), (UNITS, 6))  # units and restarts
RECOVERED, ROBUST = 1e-2, 1.5  # the error, and the ratio of errors, that count


def run(name: str, options: Options) -> Result:
    """One of the two claims, on every seed."""
    claim = {"noise_free": _noise_free, "outliers": _outliers}[name]
    return {"seeds": options.seeds, **claim(options.seeds, options.quick)}


def _noise_free(seeds: int, quick: bool) -> Result:
    students = STUDENTS[:1] if quick else STUDENTS
    rows = [
        {
            "label": f"{units} units, {restarts} restarts",
            "values": [recovery(seed, units, restarts, quick) for seed in range(seeds)],
        }
        for units, restarts in tqdm(students, desc="noise_free", unit="student")
    ]
    return {
        "title": "Recovery of a teacher without noise",
        "what": "student | RMSE / target's spread",
        "limit": RECOVERED,
        "rows": rows,
    }


def _outliers(seeds: int, quick: bool) -> Result:
    ratios = [
        outlier_ratios(seed, quick) for seed in tqdm(range(seeds), desc="outliers")
    ]
    rows = [
        {"label": loss, "values": [ratio[loss] for ratio in ratios]}
        for loss in ratios[0]
    ]
    return {
        "title": "Noise of 0.1 and 10 % outliers of 10 standard deviations",
        "what": "loss | test error / error without outliers",
        "limit": ROBUST,
        "rows": rows,
    }


def teacher(seed: int, samples: int) -> tuple[jax.Array, jax.Array]:
    """Inputs, and targets of unit spread from a 5-10-1 network."""
    x = jax.random.normal(jax.random.key(100 + seed), (samples, 5))
    params = ills.init_mlp(jax.random.key(1000 + seed), (5, UNITS, 1))
    params = [(2 * w, b) for w, b in params]
    y = ills.predict(ills.network(params), params, x)
    return x, (y - jnp.mean(y)) / jnp.std(y)


def recovery(seed: int, units: int, restarts: int, quick: bool) -> float:
    """Training error of a student on 1,000 noise-free samples."""
    x, y = teacher(seed, 1000)
    params = ills.init_mlp(jax.random.key(seed), (5, units, 1))
    network = ills.network(params)
    steps = 2 if quick else 200
    result = ills.fit_ills(
        network, params, x, y, max_iter=steps, tol=0.0, restarts=restarts
    )
    return _rmse(network, result.params, x, y)


def outlier_ratios(seed: int, quick: bool) -> dict[str, float]:
    """Clean test error by loss, over that of squared loss without the outliers."""
    x, y = teacher(seed, 600)
    keys = [jax.random.key(seed + base) for base in (5, 60, 7)]
    noisy = y + 0.1 * jax.random.normal(keys[0], y.shape)
    hit = jax.random.uniform(keys[1], y.shape) < 0.1
    sign = jnp.where(jax.random.uniform(keys[2], y.shape) < 0.5, -1.0, 1.0)
    dirty = jnp.where(hit, noisy + 10 * sign, noisy)
    params = ills.init_mlp(jax.random.key(seed), (5, UNITS, 1))
    network = ills.network(params)
    fit: Any = functools.partial(
        ills.fit_ills,
        network,
        params,
        x[:400],
        output_ridge=1e-4,
        max_iter=2 if quick else 300,
    )

    def error(result: Any) -> float:
        return _rmse(network, result.params, x[400:], y[400:])

    clean = error(fit(noisy[:400]))
    known = 1.0 - hit[:400, 0]
    robust = {
        loss: fit(dirty[:400], loss=loss) for loss in ("squared", "huber", "tukey")
    }
    left_out = fit(dirty[:400], sample_weight=known)
    without = fit(noisy[:400], loss="tukey")
    fits = {
        **robust,
        "squared, outliers left out": left_out,
        "tukey, no outliers": without,
    }
    return {label: error(result) / clean for label, result in fits.items()}


def describe(result: Result) -> str:
    """A row a student or loss: how many seeds are good enough, and how the rest are."""
    limit = result["limit"]
    header = result["what"].split(" | ")
    header = [header[0], f"at most {limit:g}", f"{header[1]}, median", "best", "worst"]
    rows = []
    for row in result["rows"]:
        values = np.array([np.inf if v is None else v for v in row["values"]])
        good = f"{np.sum(values <= limit)} of {len(values)}"
        edges = (np.median(values), values.min(), values.max())
        rows.append([row["label"], good, *(number(edge, "{:.3g}") for edge in edges)])
    return table(header, rows)


def _rmse(network: Any, params: Any, x: jax.Array, y: jax.Array) -> float:
    return float(jnp.sqrt(jnp.mean((ills.predict(network, params, x) - y) ** 2)))


JOB = Job(
    name="ills_recovery",
    title="ILLS on tanh teachers: recovery, and gross outliers",
    reading=(
        "A 5-10-1 network makes the data. Without noise the student counts as having "
        f"recovered it at an RMSE of {RECOVERED:g} of the target's spread, after 200 "
        "iterations on 1,000 samples and as many for every restart; with outliers, "
        "figures are ratios to the test error of the same run with squared loss and "
        "without outliers, so 1 is perfect."
    ),
    tasks=("noise_free", "outliers"),
    seeds=10,
    run=run,
    table=describe,
)

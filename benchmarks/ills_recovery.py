"""Two claims about ILLS on tanh teachers: recovery without noise, and outliers.

``python -m benchmarks.ills_recovery`` prints how many of ten noise-free teachers are
recovered to a hundredth of their spread, and the clean test error with 10 % gross
outliers over that of the same run without them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import linboost_optax as lbo

SEEDS, UNITS = 10, 10


def main() -> None:
    """Print both."""
    for units, restarts in ((UNITS, 0), (15, 0), (20, 0), (UNITS, 6)):
        errors = [_recovery(seed, units, restarts) for seed in range(SEEDS)]
        reached = sum(error < 1e-2 for error in errors)
        print(
            f"{units} units, {restarts} restarts: {reached} of {SEEDS} below 1e-2, "
            f"median {np.median(errors):.1e}, worst {max(errors):.1e}",
            flush=True,
        )
    ratios = [_outliers(seed) for seed in range(SEEDS)]
    for loss in ratios[0]:
        values = [ratio[loss] for ratio in ratios]
        print(
            f"{loss}: median {np.median(values):.2f}, {min(values):.2f} to "
            f"{max(values):.2f}, {sum(v <= 1.5 for v in values)} of {SEEDS} within 1.5",
            flush=True,
        )


def teacher(seed: int, samples: int) -> tuple[jax.Array, jax.Array]:
    """Inputs, and targets of unit spread from a 5-10-1 network."""
    x = jax.random.normal(jax.random.key(100 + seed), (samples, 5))
    params = lbo.init_mlp(jax.random.key(1000 + seed), (5, UNITS, 1))
    params = [(2 * w, b) for w, b in params]
    y = lbo.predict(lbo.network(params), params, x)
    return x, (y - jnp.mean(y)) / jnp.std(y)


def _recovery(seed: int, units: int, restarts: int) -> float:
    x, y = teacher(seed, 1000)
    params = lbo.init_mlp(jax.random.key(seed), (5, units, 1))
    network = lbo.network(params)
    result = lbo.fit_ills(
        network, params, x, y, max_iter=200, tol=0.0, restarts=restarts
    )
    return _rmse(network, result.params, x, y)


def _outliers(seed: int) -> dict[str, float]:
    x, y = teacher(seed, 600)
    keys = [jax.random.key(seed + base) for base in (5, 60, 7)]
    noisy = y + 0.1 * jax.random.normal(keys[0], y.shape)
    hit = jax.random.uniform(keys[1], y.shape) < 0.1
    sign = jnp.where(jax.random.uniform(keys[2], y.shape) < 0.5, -1.0, 1.0)
    dirty = jnp.where(hit, noisy + 10 * sign, noisy)
    params = lbo.init_mlp(jax.random.key(seed), (5, UNITS, 1))
    fit: Any = functools.partial(
        lbo.fit_ills, lbo.network(params), params, x[:400], output_ridge=1e-4
    )

    def error(result):
        return _rmse(lbo.network(params), result.params, x[400:], y[400:])

    clean = error(fit(noisy[:400]))
    known = 1.0 - hit[:400, 0]
    return {
        **{
            loss: error(fit(dirty[:400], loss=loss)) / clean
            for loss in ("squared", "huber", "tukey")
        },
        "squared, outliers left out": error(fit(dirty[:400], sample_weight=known))
        / clean,
        "tukey, no outliers": error(fit(noisy[:400], loss="tukey")) / clean,
    }


def _rmse(network, params, x, y) -> float:
    return float(jnp.sqrt(jnp.mean((lbo.predict(network, params, x) - y) ** 2)))


if __name__ == "__main__":
    main()

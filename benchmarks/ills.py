"""ILLS against Adam, L-BFGS and scikit-learn's MLP on bundled regression data.

``python -m benchmarks ills`` prints a table and writes JSON and PNG beside it. For
every problem the target is the final training error of the best full-batch Adam of
a grid; iterations and seconds are those that each trainer needs to get there.
"""

import argparse
import functools
import json
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import sklearn
from sklearn.neural_network import MLPRegressor

import linboost_optax as lbo
from benchmarks import ills_trainers as trainers
from benchmarks.ills_data import CORRUPTIONS, PROBLEMS, load

HIDDEN = {"teacher2": (20, 20)}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
ADAM_STEPS, EPOCHS, LBFGS_STEPS, ILLS_STEPS = 2000, 100, 1000, 300
OUT = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark; problems already in the JSON are kept unless run again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ills")
    parser.add_argument("--problems", nargs="+", default=PROBLEMS, choices=PROBLEMS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--units", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    args.out.mkdir(exist_ok=True)
    path = args.out / "ills.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results["versions"] = _versions()
    for problem in args.problems:
        results[problem] = _problem(problem, args.seeds, args.units)
        path.write_text(json.dumps(results, indent=1))
        print(table({problem: results[problem]}), flush=True)
    print("\nAll problems so far:\n" + table(results))
    plot(results, args.out / "ills.png")


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "optax": optax.__version__,
        "scikit-learn": sklearn.__version__,
        "linboost_optax": lbo.__version__,
        "device": str(jax.devices()[0].platform),
    }


def _problem(problem: str, seeds: int, units: int) -> dict[str, Any]:
    hidden = HIDDEN.get(problem, (units,))
    return {
        corruption: _cell(problem, corruption, seeds, hidden)
        for corruption in CORRUPTIONS
    }


def _cell(problem, corruption, seeds, hidden) -> dict[str, Any]:
    rows = [_seed(problem, corruption, seed, hidden) for seed in range(seeds)]
    seconds = _seconds(problem, corruption, hidden)
    names = [name for name in rows[0] if isinstance(rows[0][name], dict)]
    cell: dict[str, Any] = {
        "shape": rows[0]["shape"],
        "hidden": list(hidden),
        "target": [row["target"] for row in rows],
    }
    for name in names:
        cell[name] = {key: [row[name][key] for row in rows] for key in rows[0][name]}
        if name in seconds:
            cell[name]["seconds_an_iteration"] = seconds[name]
    return cell


def _start(problem, corruption, seed, hidden):
    split = load(problem, corruption, seed)
    sizes = (split.train[0].shape[1], *hidden, split.train[1].shape[1])
    params = lbo.init_mlp(jax.random.key(seed), sizes)
    return split, lbo.network(params), params


def _variants(corruption: str) -> dict[str, tuple[tuple[str, Any], ...]]:
    """Options of ILLS by name; "ILLS" is all defaults."""
    variants: dict[str, tuple[tuple[str, Any], ...]] = {"ILLS": ()}
    if corruption == "outliers":
        variants["ILLS, Huber"] = (("loss", "huber"),)
        variants["ILLS, Tukey"] = (("loss", "tukey"),)
    return variants


def _seed(problem, corruption, seed, hidden) -> dict[str, Any]:
    """Curves of every trainer from one start, reduced to the numbers reported."""
    split, network, params = _start(problem, corruption, seed, hidden)
    run = {"full": True}
    curves = {
        "adam": [trainers.adam(network, params, split, r, **run) for r in RATES],
        "adam, mini-batch": [
            trainers.adam_batches(network, params, split, r, steps=EPOCHS, **run)
            for r in RATES
        ],
        "L-BFGS": [trainers.lbfgs(network, params, split, steps=LBFGS_STEPS, **run)],
    }
    for name, options in _variants(corruption).items():
        curves[name] = [_ills(network, params, split, options, True)]
    if corruption == "outliers":
        curves["adam, Huber"] = [
            trainers.adam(network, params, split, r, loss="huber", **run) for r in RATES
        ]
    curves = {k: [np.asarray(c) for _, c in v] for k, v in curves.items()}
    target = min(c[-1, 0] for c in curves["adam"])
    row: dict[str, Any] = {
        "shape": [*split.train[0].shape, split.train[1].shape[1]],
        "target": float(target),
    }
    for name, runs in curves.items():
        row[name] = _reduced(runs, float(target))
    row["MLPRegressor"] = _mlp(split, hidden, seed)
    return row


def _ills(network, params, split, options, full):
    return trainers.ills(
        network, params, split, steps=ILLS_STEPS, full=full, options=options
    )


def _reduced(runs: list[np.ndarray], target: float) -> dict[str, float]:
    """Best of a grid by training error; for early stopping by validation error."""
    best = min(runs, key=lambda c: np.nan_to_num(c[-1, 0], nan=np.inf))
    stopped = min(runs, key=lambda c: np.nanmin(c[:, 1]))
    at = int(np.nanargmin(stopped[:, 1]))
    return {
        "iterations": min(trainers.first_below(c[:, 0], target) for c in runs),
        "train": float(best[-1, 0]),
        "test": float(best[-1, 2]),
        "test, early stopping": float(stopped[at, 2]),
    }


def _mlp(split, hidden, seed) -> dict[str, float]:
    x, y = (np.asarray(a) for a in split.train)
    model = MLPRegressor(
        hidden_layer_sizes=hidden, activation="tanh", max_iter=500, random_state=seed
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It seldom converges in its iterations.
        model.fit(x, y.squeeze())
    seconds = time.perf_counter() - start

    def error(data):
        inputs, targets = (np.asarray(a) for a in data)
        predicted = np.reshape(model.predict(inputs), targets.shape)
        return float(np.sqrt(np.mean((predicted - targets) ** 2)))

    return {
        "iterations": float("inf"),
        "train": error(split.train),
        "test": error(split.test),
        "test, early stopping": float("nan"),
        "seconds": seconds,
    }


def _seconds(problem, corruption, hidden, rounds=5) -> dict[str, float]:
    """Seconds an iteration: least of interleaved rounds, compiled beforehand."""
    split, network, params = _start(problem, corruption, 0, hidden)
    runs: dict[str, tuple[int, Any]] = {
        "adam": (ADAM_STEPS, lambda: trainers.adam(network, params, split, 1e-2)),
        "adam, mini-batch": (
            EPOCHS,
            lambda: trainers.adam_batches(network, params, split, 1e-2, steps=EPOCHS),
        ),
        "L-BFGS": (200, lambda: trainers.lbfgs(network, params, split, steps=200)),
    }
    for name, options in _variants(corruption).items():
        runs[name] = (
            ILLS_STEPS,
            functools.partial(_ills, network, params, split, options, False),
        )
    least = dict.fromkeys(runs, float("inf"))
    for _, run in runs.values():
        jax.block_until_ready(run())
    for _ in range(rounds):
        for name, (steps, run) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            least[name] = min(least[name], (time.perf_counter() - start) / steps)
    return least


def table(results: dict[str, Any]) -> str:
    """Medians over the seeds; ratios are to full-batch Adam."""
    lines = [
        "| problem | data | trainer | iterations | seconds | x iterations | x time "
        "| train | test | test, early stopping |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for problem, corruption, name, cell in _cells(results):
        entry, adam = cell[name], cell["adam"]
        steps = float(np.median(entry["iterations"]))
        per_step = entry.get("seconds_an_iteration", float("nan"))
        ratio = steps / np.median(adam["iterations"])
        speed = ratio * per_step / adam["seconds_an_iteration"]
        errors = [
            f"{np.median(entry[key]):.4f}"
            for key in ("train", "test", "test, early stopping")
        ]
        numbers = [f"{steps:.0f}", f"{steps * per_step:.3f}"]
        numbers += [f"{ratio:.3f}", f"{speed:.2f}"]
        if "mini-batch" in name:
            numbers[0], numbers[2] = f"{steps:.0f} epochs", ""
        lines.append(
            "| " + " | ".join([problem, corruption, name, *numbers, *errors]) + " |"
        )
    return "\n".join(lines)


def _cells(results: dict[str, Any]):
    for problem in PROBLEMS:
        for corruption, cell in results.get(problem, {}).items():
            for name, entry in cell.items():
                if isinstance(entry, dict) and "train" in entry:
                    yield problem, corruption, name, cell


def plot(results: dict[str, Any], path: Path) -> None:
    """Time to the target relative to Adam's, one bar a problem and trainer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    problems = [p for p in PROBLEMS if p in results]
    names = ["adam, mini-batch", "L-BFGS", "ILLS"]
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for at, name in enumerate(names):
        ratios = []
        for problem in problems:
            cell = results[problem]["clean"]
            entry, adam = cell[name], cell["adam"]
            own = np.median(entry["iterations"]) * entry["seconds_an_iteration"]
            ratios.append(
                own / (np.median(adam["iterations"]) * adam["seconds_an_iteration"])
            )
        places = np.arange(len(problems)) + 0.27 * (at - 1)
        finite = np.where(np.isfinite(ratios), ratios, 0)
        axis.bar(places, finite, width=0.25, label=name)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_yscale("log")
    axis.set_xticks(np.arange(len(problems)), problems, rotation=20)
    axis.set_ylabel("time to Adam's final error / Adam's time")
    axis.set_title("Clean data, medians over seeds; no bar: not reached")
    axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()

"""Tables on the terminal, JSON on disk, and the facts that make a figure mean much."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from benchmarks.analysis import summarise

PACKAGES = ("linboost_optax", "jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn")


def facts() -> dict[str, Any]:
    """Versions and machine."""
    return {
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def race_table(result: dict[str, Any]) -> str:
    """Every optimizer of a race in one row, measured against the baseline."""
    optimizers = result["optimizers"]
    memory = optimizers["adam"]["temporary_bytes"]
    rows = []
    for name, entry in optimizers.items():
        row = summarise(result, name)
        rows.append(
            [
                entry["label"],
                number(entry["learning_rate"]) + ("*" if entry["edge"] else ""),
                number(entry["lowest"]),
                number(row["train_loss"]),
                number(row["test_loss"]),
                number(row["test_accuracy"]),
                number(row["steps"], "{:.0f}"),
                number(row["steps_ratio"], "{:.2f}x"),
                number(row["seconds"], "{:.2f}"),
                number(row["seconds_ratio"], "{:.2f}x"),
                spread(row["step_time"], row["step_time_low"], row["step_time_high"]),
                ratio(entry["temporary_bytes"], memory),
            ]
        )
    header = "optimizer | learning rate | lowest loss | train loss | test loss | "
    header += "accuracy | steps | / Adam | seconds | / Adam | "
    header += "step time / Adam | memory / Adam"
    return table(header.split(" | "), rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned: first column left, the others right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def number(value: float | None, form: str = "{:.4g}") -> str:
    """A figure, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return form.format(value)


def ratio(value: float, reference: float) -> str:
    """A multiple of a reference, or a dash where the reference is nothing."""
    return number(value / reference if reference else None, "{:.2f}x")


def spread(middle: float | None, low: float | None, high: float | None) -> str:
    """A median with its quartiles."""
    centre, *quartiles = (number(value, "{:.2f}") for value in (middle, low, high))
    return f"{centre} [{', '.join(quartiles)}]"


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result with the facts; a number that is not finite becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = _finite({"facts": facts(), **result})
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _version(package: str) -> str:
    if package == "linboost_optax":
        import linboost_optax

        return linboost_optax.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    """The processor's name where Linux tells it, else what Python knows."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"

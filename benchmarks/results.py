"""JSON on disk, and the facts that make a figure mean much."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import linboost_optax
from benchmarks.job import Result

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn")
ROOT = Path(__file__).parent.parent
DIGITS = 6  # significant ones: more than any figure has, and half of the bytes


def facts(root: Path = ROOT) -> dict[str, Any]:
    """Versions, commit and machine."""
    versions = {package: _version(package) for package in PACKAGES}
    return {
        "versions": {
            "python": platform.python_version(),
            "linboost_optax": linboost_optax.__version__,
            **versions,
        },
        "commit": commit(root),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def commit(root: Path = ROOT) -> str:
    """The commit of a checkout, marked when its code was changed since."""
    # The prefix is empty at the top of a checkout: a copy of these files that lies
    # in somebody else's repository has none of its commits.
    shown = _git(root, "rev-parse", "--show-prefix", "--short=7", "HEAD")
    prefix, _, found = (shown or "-\n").partition("\n")
    if prefix or not found:
        return "unknown"
    code = ("linboost_optax", "benchmarks/*.py")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *code)
    return found.strip() + (" with changes" if changed else "")


def write(path: Path, result: Result) -> None:
    """Write a result, rounded; a number that is not finite becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    finite = _map_floats(rounded(result), lambda x: x if math.isfinite(x) else None)
    text = json.dumps(finite, indent=1, allow_nan=False)
    # A list without lists in it takes one line: a curve is one line of a diff.
    text = re.sub(r"\[[^][{}]*\]", lambda found: re.sub(r"\n\s*", "", found[0]), text)
    path.write_text(text + "\n")


def read(path: Path) -> Result:
    """Read a result; where a curve had no finite value it has NaN again."""
    result = json.loads(path.read_text())
    for entry in result.get("optimizers", {}).values():
        for curves in entry.get("curves", []):
            for key, values in curves.items():
                curves[key] = [math.nan if v is None else v for v in values]
    return result


def read_all(folder: str | Path) -> dict[str, dict[str, Result]]:
    """Every result in a folder, by job and task.

    Raises:
        FileNotFoundError: when there is none.
    """
    found: dict[str, dict[str, Result]] = {}
    for path in sorted(Path(folder).glob("*.json")):
        result = read(path)
        found.setdefault(result["job"], {})[result["task"]] = result
    if not found:
        raise FileNotFoundError(
            f"A report needs the JSON of a job, and '{folder}' has none. Name the "
            f"folder with --results, or run `python -m benchmarks` first."
        )
    return found


def of_tasks(
    found: Mapping[str, Mapping[str, Result]],
    job: str,
    tasks: Sequence[str],
    whose: str,
) -> list[Result]:
    """The results of some tasks of a job, in their order, for something that has all.

    Raises:
        ValueError: when there is none of one of them.
    """
    have = found.get(job, {})
    missing = [task for task in tasks if task not in have]
    if missing:
        raise ValueError(
            f"{whose} needs all its tasks of `{job}`, and there is no JSON of "
            f"{', '.join(missing)}. Run `python -m benchmarks {job} --tasks "
            f"{' '.join(missing)}`."
        )
    return [have[task] for task in tasks]


def rounded(result: Result) -> Result:
    """The result with every float at `DIGITS` significant digits."""
    return _map_floats(result, lambda x: float(f"{x:.{DIGITS}g}"))


def _map_floats(value: Any, function: Callable[[float], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _map_floats(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_floats(item, function) for item in value]
    return function(value) if isinstance(value, float) else value


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def _version(package: str) -> str:
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

"""What a trial writes: JSON and a page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def to_json(record: dict[str, Any]) -> str:
    """Returns a record as JSON; what is not finite is null."""
    return json.dumps(_finite(record), indent=1, allow_nan=False)


def write(folder: str | Path, name: str, record: str, page: str) -> list[Path]:
    """Writes both, and makes the folder if there is none; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{end}" for end in ("json", "html")]
    for path, text in zip(paths, (record, page)):
        path.write_text(text)
    return paths


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value

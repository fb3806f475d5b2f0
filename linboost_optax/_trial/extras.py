"""What a trial needs beside the package: said before anything runs."""

from __future__ import annotations

import importlib.util


def require(*modules: str) -> None:
    """Raises unless all of them are installed.

    Raises:
      ModuleNotFoundError: with the way out.
    """
    missing = [each for each in modules if importlib.util.find_spec(each) is None]
    if missing:
        raise ModuleNotFoundError(
            f"a trial needs {' and '.join(missing)}, which the extra `trial` has: "
            "`pip install -e '.[trial]'`. In a script `progress=False` needs "
            "no tqdm, and what it returns prints without matplotlib."
        )

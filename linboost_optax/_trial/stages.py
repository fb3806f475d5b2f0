"""Where a task broke: every part of the user's is run in a stage that has a name."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])
_INSTALLED = (*sysconfig.get_paths().values(), _PACKAGE)


class TrialError(RuntimeError):
    """A part of the user's task failed; the cause is the exception that it raised."""


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Says in which stage an exception was raised, and on which line of the user's.

    Args:
      name: what is going on, as in "``loss`` on the first batch".

    Raises:
      TrialError: from whatever is raised inside.
    """
    try:
        yield
    except TrialError:
        raise
    except Exception as error:
        where = _place(error)
        place = f" (line {where.lineno} of {where.filename})" if where else ""
        raise TrialError(
            f"{name} failed{place}: {type(error).__name__}: {error}"
        ) from error


def _place(error: BaseException) -> traceback.FrameSummary | None:
    """The last frame in code of the user's own: in no installed package."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    own = [frame for frame in own if Path(frame.filename).is_file()]
    return own[-1] if own else None

"""Why a run ended."""

import enum


class IllsCode(enum.IntEnum):
    """Says why ``fit_ills`` ended; ``code.message`` is a sentence.

    Example:
      >>> from linboost_optax.ills import IllsCode
      >>> IllsCode.TOLERANCE.converged, IllsCode.TOLERANCE.message
      (True, 'Converged: the objective no longer falls by `tol`.')
    """

    MAX_ITER = 0
    TOLERANCE = 1
    EARLY_STOPPED = 2
    STALLED = 3
    STALLED_DEAD_UNITS = 4
    STALLED_SINGULAR = 5
    NOT_FINITE = 6

    @property
    def converged(self) -> bool:
        """Whether the run ended by a convergence criterion."""
        return self in (IllsCode.TOLERANCE, IllsCode.EARLY_STOPPED)

    @property
    def message(self) -> str:
        """The reason, and the way out where there is one."""
        return _MESSAGES[self]


_MESSAGES = {
    IllsCode.MAX_ITER: "Reached `max_iter` iterations. Raise it to go on.",
    IllsCode.TOLERANCE: "Converged: the objective no longer falls by `tol`.",
    IllsCode.EARLY_STOPPED: "Converged: the validation loss no longer falls.",
    IllsCode.STALLED: "Stalled: ten steps in a row were rejected. Try other start "
    "weights, a larger `ridge`, `combine='unit'` or `method='weighted'`.",
    IllsCode.STALLED_DEAD_UNITS: "Stalled: ten steps in a row were rejected and some "
    "hidden units are dead (saturated on every sample). Standardise the inputs and "
    "start from smaller weights.",
    IllsCode.STALLED_SINGULAR: "Stalled: ten steps in a row were rejected and `ridge` "
    "is 0 while a layer's inputs are linearly dependent. Use a small positive "
    "`ridge`, e.g. 1e-5.",
    IllsCode.NOT_FINITE: "The objective was not finite at the start weights; nothing "
    "was changed. Check the scale of inputs, targets and weights.",
}

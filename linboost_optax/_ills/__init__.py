"""Iterative linear least squares.

``transformation`` is the Optax transformation, ``fit`` runs it to convergence,
``diagnostics`` shows its regressions. An iteration is ``weighted`` (step 1) and
``subspace`` (step 2), or ``published``, then ``problem`` (step 3 and the objective).
``least_squares``, ``chunks`` and ``robust`` are what they rest on.
"""

"""The A/B tests behind every number in the README and in RESULTS.md.

`driver.py` runs a job (`jobs/`) on a task (`tasks/`, `regression/`) with some
competitors (`optimizers.py`, `rivals/`); `training.py` is the clock, `report.py` the
tables across jobs. A new job is a file in `jobs/` and its name in `jobs/__init__.py`; a
new task or optimizer is one decorated function.
"""

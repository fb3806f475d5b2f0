"""Batches of the user's: epoch after epoch, all of one shape, some at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax._trial.stages import stage
from linboost_optax._trial.task import TEST, TRAIN, Task

EVALUATED = 16  # batches that an evaluation reads, at most
HELD = 2**28  # bytes of batches that are held at once, at most
_EPOCHS = 100_003  # a prime: no epoch of a seed is one of another


def training(task: Task, seed: int) -> Iterator[Any]:
    """Batches without an end: where an epoch ends, the next has another seed.

    Raises:
      TrialError: if ``batches`` fails, yields nothing, or batches of other shapes.
    """
    shapes = None
    for epoch in itertools.count():
        batch = None
        source = _source(task, TRAIN, seed * _EPOCHS + epoch)
        for number, batch in enumerate(source):
            shapes = shapes or shapes_of(batch)
            with stage(f'`batches("{TRAIN}", seed)`, batch {number},'):
                _check(shapes, shapes_of(batch))
            yield jax.tree.map(jnp.asarray, batch)
        if batch is None:
            with stage(f'`batches("{TRAIN}", seed)`'):
                raise ValueError("it must yield batches, got none. Yield at least one.")


def evaluated(task: Task) -> dict[str, list[Any]]:
    """The batches that losses are evaluated on, by split; no test ones if none are."""
    train = itertools.islice(training(task, seed=0), EVALUATED)
    shapes = None
    found: dict[str, list[Any]] = {TRAIN: []}
    for batch in train:
        found[TRAIN].append(batch)
    test = []
    for batch in itertools.islice(_source(task, TEST, 0), EVALUATED):
        shapes = shapes or shapes_of(batch)
        if shapes_of(batch) == shapes:  # an incomplete last one would weigh as much
            test.append(jax.tree.map(jnp.asarray, batch))
    return found | ({TEST: test} if test else {})


def blocks(source: Iterator[Any], steps: int) -> Iterator[list[Any]]:
    """The next so many batches, as many at a time as may be held."""
    while steps > 0:
        first = next(source)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(first))
        count = min(steps, max(1, HELD // max(1, size)))
        yield [first, *itertools.islice(source, count - 1)]
        steps -= count


def shapes_of(batch: Any) -> Any:
    """The structure of a batch with its shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _source(task: Task, split: str, seed: int) -> Iterator[Any]:
    """What ``batches`` yields; nothing where it returns None."""
    name = f'`batches("{split}", {seed})`'
    with stage(name):
        found = task.batches(split, seed)
        iterator = iter(() if found is None else found)
    while True:
        with stage(name):
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


def _check(expected: Any, got: Any) -> None:
    if got != expected:
        raise ValueError(
            f"all training batches must have one shape, got {got[1]} after "
            f"{expected[1]}. Drop the last, incomplete batch of an epoch."
        )

"""Batches of the user's: epochs, shapes, and how many are held."""

import itertools

import jax
import numpy as np
import pytest

import linboost_optax as lbo
from linboost_optax._trial import batches
from linboost_optax._trial.task import Task
from tests.trial.tasks import ROWS, SIZE, TASKS, X, loss, tree

TASK = TASKS["tree"]
EPOCH = ROWS // SIZE


def of(function):
    return Task("mine", tree, loss, function)


def test_epochs_have_every_row_once_and_orders_of_their_own():
    found = list(itertools.islice(batches.training(TASK, 0), 3 * EPOCH))
    epochs = [
        np.concatenate([x for x, _ in found[i : i + EPOCH]])
        for i in range(0, 3 * EPOCH, EPOCH)
    ]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch, 0), np.sort(X[:ROWS], 0))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_a_seed_is_repeated_and_others_differ():
    first, again, other = (
        np.stack([x for x, _ in itertools.islice(batches.training(TASK, seed), 7)])
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_another_shape_is_refused_with_both():
    def ragged(split, seed):
        yield np.ones((4, 2))
        yield np.ones((3, 2))

    source = batches.training(of(ragged), 0)
    next(source)
    with pytest.raises(
        lbo.TrialError, match=r"batch 1, .*one shape, got .*\(3, 2\).*\(4, 2\).*Drop"
    ):
        next(source)


def test_an_incomplete_test_batch_does_not_count():
    def ragged(split, seed):
        yield np.ones((4, 2))
        if split == "test":
            yield np.ones((3, 2))

    found = batches.evaluated(of(ragged))
    assert [x.shape for x in found["test"]] == [(4, 2)]


@pytest.mark.parametrize("nothing", [lambda: None, lambda: []])
def test_no_test_split(nothing):
    task = of(lambda split, seed: [np.ones((4, 2))] if split == "train" else nothing())
    assert list(batches.evaluated(task)) == ["train"]


def test_an_evaluation_reads_so_many_batches_at_most():
    task = of(lambda split, seed: (np.ones((4, 2)) for _ in range(100)))
    found = batches.evaluated(task)
    assert [len(found[split]) for split in ("train", "test")] == [batches.EVALUATED] * 2


def test_blocks_are_as_long_as_may_be_held(monkeypatch):
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(next(TASK.batches("train", 0))))
    monkeypatch.setattr(batches, "HELD", 4 * size)
    source = batches.training(TASK, 0)
    assert [len(each) for each in batches.blocks(source, 10)] == [4, 4, 2]


def test_a_batch_that_is_too_large_comes_alone(monkeypatch):
    monkeypatch.setattr(batches, "HELD", 1)
    source = batches.training(TASK, 0)
    assert [len(each) for each in batches.blocks(source, 3)] == [1, 1, 1]

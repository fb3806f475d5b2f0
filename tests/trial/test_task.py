"""What a task must have, and what is said where it has not."""

import jax
import optax
import pytest

import linboost_optax as lbo
from linboost_optax._trial import task
from linboost_optax._trial.task import Task
from tests.trial.tasks import TASKS, batches, loss, tree

WHOLE = """
import jax.numpy as jnp
def model(key): return {"w": jnp.ones((2, 1))}
def loss(params, batch): return jnp.mean((batch @ params["w"]) ** 2)
def batches(split, seed): yield jnp.ones((4, 2))
"""


def test_a_file_is_read_by_its_names(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        WHOLE + "import optax\ndef optimizer(rate=0.5): return optax.sgd(rate)"
    )
    found = task.load(path)
    assert (found.name, found.own_rate, found.takes_key) == ("mine", 0.5, False)
    assert found.schedule is None


def test_a_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_the_trial.py").write_text("SIZE = 3")
    path = tmp_path / "mine.py"
    path.write_text("from neighbour_of_the_trial import SIZE\n" + WHOLE)
    assert task.load(path).name == "mine"


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"got 'nowhere.py', which is no file"):
        task.load("nowhere.py")


@pytest.mark.parametrize("name", ["model", "loss", "batches"])
def test_a_name_that_is_missing(name):
    found = {"model": tree, "loss": loss, "batches": batches}
    del found[name]
    with pytest.raises(ValueError, match=f"has no `{name}`. Write `def {name}"):
        task.of("mine", found)


@pytest.mark.parametrize("name", ["model", "loss", "batches", "optimizer", "schedule"])
def test_a_name_that_is_no_function(name):
    found = {"model": tree, "loss": loss, "batches": batches} | {name: 3}
    with pytest.raises(TypeError, match=f"`{name}` must be a function, got int. Write"):
        task.of("mine", found)


@pytest.mark.parametrize(
    ("optimizer", "got"),
    [
        (lambda rate: optax.sgd(rate), "none"),
        (lambda: optax.sgd(1.0), "none"),
        (lambda rate=0.0: optax.sgd(rate), "0.0"),
        (lambda rate="fast": optax.sgd(1.0), "'fast'"),
        (lambda rate=True: optax.sgd(1.0), "True"),
    ],
)
def test_an_optimizer_without_a_rate(optimizer, got):
    with pytest.raises(ValueError, match=f"learning rate, a number > 0.* got {got}"):
        Task("mine", tree, loss, batches, optimizer)


def test_a_failing_file_names_its_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("x = 1\ny = x / 0\n")
    with pytest.raises(
        lbo.TrialError, match=r"running mine.py failed \(line 2 of .*mine"
    ):
        task.load(path)


def test_a_loss_takes_a_key_as_its_third_argument():
    assert Task("mine", tree, lambda m, b, key: 0.0, batches).takes_key
    assert not Task("mine", tree, lambda m, b, *, scale=1.0: 0.0, batches).takes_key


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"minutes": 0}, "`minutes` must be > 0"),
        ({"steps": 3}, "`steps` must be >= 40"),
        ({"seeds": 0}, "`seeds` must be >= 1"),
    ],
)
def test_arguments_out_of_range(change, match):
    mine = TASKS["tree"]
    with pytest.raises(ValueError, match=match):
        lbo.trial(mine.model, mine.loss, mine.batches, progress=False, **change)


def broken(part):
    """A task of which one part fails, and where that is said to be."""

    def model(key):
        if part == "model":
            raise KeyError("nothing here")
        return tree(key)

    def some_loss(params, batch):
        if part == "loss":
            raise KeyError("nothing here")
        value = loss(params, batch)
        return {"vector": value[None], "nan": value * jax.numpy.nan}.get(part, value)

    def some_batches(split, seed):
        if part == "batches":
            raise KeyError("nothing here")
        if part != "empty":
            yield from batches(split, seed)

    return some_batches, model, some_loss


@pytest.mark.parametrize(
    ("part", "match"),
    [
        ("model", r"`model\(key\)` failed \(line \d+ of .*test_task.py\): KeyError"),
        (
            "loss",
            r"`loss` on the first training batch failed \(line \d+ of .*test_task",
        ),
        ("batches", r'`batches\("train", 0\)` failed \(line \d+ of .*test_task.py'),
        (
            "empty",
            r'`batches\("train", seed\)` failed.*it must yield batches, got none',
        ),
        ("vector", r"`loss` on the first .* must return a scalar, got .* shape \(1,\)"),
        ("nan", r"`loss` on the first .* must be finite at the start, got nan"),
    ],
)
def test_a_part_that_fails_is_named(part, match):
    batches, model, loss = broken(part)
    with pytest.raises(lbo.TrialError, match=match) as caught:
        lbo.trial(model, loss, batches, progress=False)
    assert caught.value.__cause__ is not None

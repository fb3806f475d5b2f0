"""The trial: whether any of this is worth it on a task of the user's own."""

from __future__ import annotations

from linboost_optax import _checks
from linboost_optax._trial.outcome import Trial
from linboost_optax._trial.plan import FEWEST
from linboost_optax._trial.run import trial_of
from linboost_optax._trial.stages import TrialError
from linboost_optax._trial.task import (
    Batches,
    Loss,
    Model,
    OwnOptimizer,
    Schedule,
    Task,
)

__all__ = ["Trial", "TrialError", "trial"]


def trial(
    model: Model,
    loss: Loss,
    batches: Batches,
    *,
    optimizer: OwnOptimizer | None = None,
    schedule: Schedule | None = None,
    minutes: float = 10.0,
    steps: int | None = None,
    seeds: int = 3,
    name: str = "trial",
    progress: bool = True,
) -> Trial:
    """Races optimizers on your own task, and says which to take, and why.

    Your own optimizer at your rate, Adam, Muon, LNB and ``polar``: each at seven
    learning rates in short runs, three of them in longer ones, the best one in races
    on other seeds, interleaved and clocked. All of it takes ``minutes``, compilation
    included.

    Args:
      model: ``model(key)`` returns what is trained: Linen's variables, an NNX module,
        or a tree of arrays.
      loss: ``loss(model, batch)``, a scalar, of what ``model`` returned and a batch;
        of Linen's variables also ``(scalar, collections that changed)``. With a third
        argument it is given a random key in training and None where it is evaluated,
        which tells dropout what to do; modules of NNX are switched by ``train()`` and
        ``eval()``.
      batches: ``batches(split, seed)`` yields the batches of an epoch, trees of arrays:
        of ``"train"`` all of one shape, of ``"test"`` those that are held out; None or
        nothing where none are. Every epoch has a seed of its own.
      optimizer: ``optimizer(learning_rate=1e-3)`` returns your Optax transformation,
        without a schedule; its default is your rate. Default None: tuned Adam is what
        all others are compared to.
      schedule: ``schedule(step, steps)``, the share of the rate at a step, for all of
        them; default None is a warm-up over 5 % of the steps, then a cosine to zero.
      minutes: the budget; default 10.
      steps: of a race, 40 or more; default None: as many as fit.
      seeds: of a race, as many as fit up to this; default 3.
      name: for headings and files.
      progress: whether to show a bar; default True. It needs tqdm.

    Returns:
      A ``Trial``: print it, or look at it in a notebook; ``save(folder)`` writes a
      report and JSON. After an interrupt from the keyboard it has what is there.

    Raises:
      TrialError: if a part of the task fails, with the part and the line.
      TypeError: if an argument is of another type.
      ValueError: if ``minutes`` are too few, or ``optimizer`` has no rate.
      ModuleNotFoundError: if there is no tqdm to show progress with.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import linboost_optax as lbo
      >>> x = jax.random.normal(jax.random.key(0), (64, 3)) * jnp.array([1.0, 9.0, 0.1])
      >>> y = x @ jnp.array([1.0, -2.0, 3.0])
      >>> def model(key):
      ...     return {"w": jax.random.normal(key, (3, 1)), "b": jnp.zeros(1)}
      >>> def loss(params, batch):
      ...     x, y = batch
      ...     return jnp.mean(((x @ params["w"] + params["b"])[:, 0] - y) ** 2)
      >>> def batches(split, seed):
      ...     yield (x[:48], y[:48]) if split == "train" else (x[48:], y[48:])
      >>> found = lbo.trial(
      ...     model, loss, batches, minutes=5, steps=40, seeds=1, progress=False
      ... )
      >>> found.record["target"], found.record["seeds"]
      ('test_loss', [1])

    References:
      Jamieson and Talwalkar (2016), arXiv:1502.07943: successive halving.
    """
    _checks.positive("minutes", minutes)
    _checks.optional_whole("steps", steps, FEWEST)
    _checks.whole("seeds", seeds, 1)
    task = Task(name, model, loss, batches, optimizer, schedule)
    return trial_of(task, minutes, steps, seeds, progress)

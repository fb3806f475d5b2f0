"""What is checked around every update that reads statistics."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from linboost_optax._transforms.meshes import strangers


def checked(
    init_fn: optax.TransformInitFn, update_fn: optax.TransformUpdateExtraArgsFn
) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that refuses ``optax.MultiSteps`` and explains states.

    Its errors tell where a state does not fit it, and what is over another mesh.
    Nothing of that is looked at unless an update fails: what fits costs nothing.
    """

    def update(updates, state, params=None, **extra_args):
        _refuse_optax_multi_steps()
        try:
            return update_fn(updates, state, params, **extra_args)
        except Exception as error:
            stats = extra_args.get("stats")
            reason = _mismatch(init_fn, updates, state)
            reason = reason or strangers(updates, stats, state)
            if reason is not None:
                raise ValueError(reason) from error
            raise

    return optax.GradientTransformationExtraArgs(init_fn, update)


def _refuse_optax_multi_steps() -> None:
    """Raises while ``optax.MultiSteps`` runs the optimizer.

    It runs its optimizer on every micro-batch and throws away what that returns, state
    included, but for the last: nothing in the arrays can tell, and nothing can be kept.
    So it is looked for among the callers, once a trace.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is optax.MultiSteps.update.__code__:
            raise ValueError(
                "`optax.MultiSteps` hands on the statistics of the last micro-batch "
                "alone, beside the mean of all gradients. Use `lbo.multi_steps(tx, "
                "taps, every_k_schedule)`, which adds statistics up."
            )
        frame = frame.f_back


def _mismatch(init_fn: optax.TransformInitFn, updates: Any, state: Any) -> str | None:
    """Returns what a state has at the first place where it does not fit, or None."""
    try:
        wanted = jax.eval_shape(init_fn, updates)
    except Exception:
        return None  # not the state's fault
    want, got = _shapes(wanted), _shapes(state)
    for place in [*want, *got]:
        if want.get(place) != got.get(place):
            return _MESSAGE.format(
                place=place or "its root",
                got=_text(got.get(place)),
                want=_text(want.get(place)),
            )
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path): tuple(jnp.shape(leaf))
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _text(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"an array of shape {shape}"


_MESSAGE = (
    "`state` must be what this optimizer's `init` returns for a tree like `updates`: "
    "at {place} it has {got}, and {want} belongs there. Give `init` and `update` the "
    "same tree (both the 'params' collection, or both the variables that hold it), and "
    "restore a checkpoint into an optimizer with the statistic and the solver that it "
    "was saved with."
)

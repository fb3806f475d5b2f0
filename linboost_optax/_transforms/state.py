"""States of another optimizer, or for another tree, told apart when an update fails."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def explained(
    init_fn: optax.TransformInitFn, update_fn: optax.TransformUpdateExtraArgsFn
) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation whose errors tell where a state does not fit it.

    Nothing is looked at unless an update fails: a state that fits costs nothing.
    """

    def update(updates, state, params=None, **extra_args):
        try:
            return update_fn(updates, state, params, **extra_args)
        except Exception as error:
            reason = _mismatch(init_fn, updates, state)
            if reason is not None:
                raise ValueError(reason) from error
            raise

    return optax.GradientTransformationExtraArgs(init_fn, update)


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

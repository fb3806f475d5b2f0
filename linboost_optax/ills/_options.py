"""The options of ILLS with their defaults, and the only place that reads names."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax

from linboost_optax.ills._model.network import Network
from linboost_optax.ills._settings import Method, Settings
from linboost_optax.ills._steps.combine import COMBINES, Combine
from linboost_optax.ills._steps.importance import IMPORTANCES, Importance
from linboost_optax.ills._steps.losses import LOSSES, Loss
from linboost_optax.ills._steps.methods import METHODS

P = ParamSpec("P")
Result = TypeVar("Result")


def resolve(
    network: Network,
    *,
    method: str | Method = "weighted",
    combine: str | Combine = "layer",
    importance: str | Importance = "unit",
    damping: Any = 1e-2,
    ridge: Any = 1e-5,
    output_ridge: Any = 1e-6,
    hidden_ridge: Any = 0.0,
    loss: str | Loss = "squared",
    tuning: Any = None,
    relaxation: Any = 1.0,
    margin: Any = 1e-3,
    chunk_size: int | None = None,
    axis_name: Any = None,
) -> Settings:
    """Returns the settings that options mean; ``ills`` documents and takes them."""
    if not isinstance(network, Network):
        raise TypeError(
            f"`network` must be a `Network`, got {type(network).__name__}. "
            "Describe yours with `network(params)`, `linen.network(model, x)` or "
            "`nnx.network(model, x)`."
        )
    numbers = {"relaxation": relaxation, "margin": margin, "tuning": tuning}
    given: dict[str, Any] = {name: _number(value) for name, value in numbers.items()}
    given["combine"] = _choose("combine", combine, COMBINES, Combine, {})
    given["importance"] = _choose("importance", importance, IMPORTANCES, Importance, {})
    chosen = _choose("method", method, METHODS, Method, given)
    picked = _choose("loss", loss, LOSSES, Loss, given)
    parts = {"combine": combine, "importance": importance}
    limits = {"relaxation": relaxation, "margin": margin}
    _refuse_unread("method", method, chosen, parts | limits)
    _refuse_unread("loss", loss, picked, {"tuning": tuning})
    settings = Settings(
        network=network,
        method=chosen,
        loss=picked,
        damping=_ridge("damping", damping),
        ridge=_ridge("ridge", ridge),
        output_ridge=_ridge("output_ridge", output_ridge),
        hidden_ridge=_none_if_zero(_ridge("hidden_ridge", hidden_ridge)),
        chunk_size=_chunk_size(chunk_size),
        axis_name=axis_name,
    )
    chosen.check(network)
    return settings


def takes_options(
    function: Callable[..., Result], resolve: Callable[P, Any] = resolve
) -> Callable[P, Result]:
    """Shows the signature of ``resolve`` for a function that passes everything on."""
    shown = inspect.signature(resolve).replace(
        return_annotation=inspect.signature(function).return_annotation
    )
    vars(function)["__signature__"] = shown
    return function


def _choose(
    name: str,
    got: Any,
    table: Mapping[str, type],
    protocol: type,
    given: Mapping[str, Any],
) -> Any:
    """Returns the object behind a name, made of its own options, or the object."""
    # All are made, so that an option is checked where it is not used, too.
    made = {key: _make(kind, given) for key, kind in table.items()}
    if isinstance(got, str) and got in made:
        return made[got]
    if not isinstance(got, protocol) or isinstance(got, type):
        raise ValueError(f"`{name}` must be one of {list(table)}, got {got!r}.")
    return got


def _make(kind: type, given: Mapping[str, Any]) -> Any:
    fields = [field.name for field in dataclasses.fields(kind)]
    return kind(**{n: given[n] for n in fields if given.get(n) is not None})


def _refuse_unread(
    choice: str, got: Any, made: Any, options: Mapping[str, Any]
) -> None:
    """Raises where an option was changed that would be dropped without a word.

    Args:
      choice: name of the argument whose options they are.
      got: what it was given: an object has options of its own.
      made: the object behind it.
      options: by name.
    """
    named = isinstance(got, str)
    read = {field.name for field in dataclasses.fields(made)} if named else set()
    for name, value in options.items():
        if name in read or not _is_changed(name, value):
            continue
        way_out = (
            f"Leave it out, or take another `{choice}`."
            if named
            else f"Give it to the object that is `{choice}`."
        )
        raise ValueError(
            f"`{name}` must be left at its default where `{choice}` does not read it, "
            f"got {name}={value!r} with {choice}={got!r}. {way_out}"
        )


def _is_changed(name: str, value: Any) -> bool:
    default = inspect.signature(resolve).parameters[name].default
    if isinstance(value, jax.Array):
        # Traced defaults (`optax.inject_hyperparams`) are compared by nobody.
        return default is None
    return value is not default and value != default


def _number(value: Any) -> Any:
    # Integers as floats, for these are arguments of compiled code.
    return float(value) if isinstance(value, int) else value


def _ridge(name: str, value: Any) -> Any:
    # Traced values (`optax.inject_hyperparams`) are compared by nobody.
    if isinstance(value, int | float) and not 0 <= value < float("inf"):
        raise ValueError(
            f"`{name}` must be finite and >= 0, got {value}. "
            "Use a small positive value, e.g. 1e-5."
        )
    return _number(value)


def _none_if_zero(ridge: Any) -> Any:
    return None if isinstance(ridge, float) and ridge == 0 else ridge


def check_undivided(settings: Settings) -> None:
    """Raises if samples are to be spread where all of them are taken at once."""
    if settings.axis_name is not None:
        raise ValueError(
            "`axis_name` must be None where all samples are given at once, got "
            f"{settings.axis_name!r}. Spread them over devices with `ills` inside "
            "`shard_map`."
        )


def _chunk_size(chunk_size: Any) -> int | None:
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(
            f"`chunk_size` must be a positive integer or None, got {chunk_size!r}. "
            "Use e.g. 8192, or None for all samples at once."
        )
    return chunk_size

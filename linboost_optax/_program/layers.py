"""The layers of a traced function: its kernels, their biases, and what stays plain."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from linboost_optax._arrangement import Arrangement
from linboost_optax._layer import Layer, Path, join
from linboost_optax._program import tree
from linboost_optax._program.notes import IN_WHILE
from linboost_optax._program.refusals import refuse_repeated
from linboost_optax._program.tied import as_tied, tied_of
from linboost_optax._program.trace import Program
from linboost_optax._program.uses import Bias, Use
from linboost_optax._statistics import Rule, Statistic
from linboost_optax._statistics.base import accumulation_dtype
from linboost_optax._taps import Plain, Taps
from linboost_optax._taps.selection import named
from linboost_optax._taps.sharing import without

# Tells why a parameter stays plain, given its path; None where nothing is known.
Advice = Callable[[Path], str | None]

_OUTSIDE = "multiplied with data otherwise than as one kernel"
_ELSEWHERE = "also met by data element by element (`{}`)"
_UNUSED = "not used by this call"
_VECTOR = "scales or shifts channels one by one; it has no kernel"
_OTHER = "is not multiplied with data as a kernel; if it is one, see `register`"
_GEOMETRIES = "used with different geometries; make a layer for each to tap it"
_NARROW = "is {}; only real, floating kernels have a metric"
_COMPLEX = "complex inputs; only real ones have a real metric"


def taps_of(
    program: Program,
    params: Any,
    asked: Rule,
    exclude: str | Sequence[str],
    name: str,
    advice: Advice = lambda _: None,
) -> Taps:
    """Returns the taps of a traced function.

    Args:
      program: the function.
      params: its parameters, or what has their shapes and dtypes.
      asked: what statistic to take.
      exclude: names of layers to leave alone.
      name: what errors call the function.
      advice: why a parameter stays plain, for those of which more is known.

    Raises:
      ValueError: if nothing is tapped, ``exclude`` names no layer, or a statistic that
        does not add up is of a layer that is used more than once.
    """
    paths, leaves = tree.names(params), jax.tree.leaves(params)
    uses: defaultdict[int, list[Use]] = defaultdict(list)
    for use in program.uses:
        uses[use.parameter].append(use)
    reasons: dict[int, str] = {
        i: f"{_OUTSIDE}: {why}"
        for i, why in program.outside.items()
        if len(program.shapes[i]) > 1
    }
    reasons.update(program.left)
    for i in uses:
        if i in program.elsewhere:
            reasons.setdefault(i, _ELSEWHERE.format(program.elsewhere[i]))
    for i, own in uses.items():
        why = _hindrance(own, leaves[i].dtype)
        if why is not None:
            reasons.setdefault(i, why)
            biases = [use.bias.parameter for use in own if use.bias is not None]
            reasons.update(dict.fromkeys(biases, why))
    found = _layers(program, uses, reasons, paths, leaves, asked)
    gone = named("exclude", exclude, found.values())
    left = {i for i, layer in found.items() if layer.path in gone}
    kept = without(_share(found, uses), gone)
    where = {path: i for i, path in enumerate(paths)}
    covered = {where[layer.where(name)] for layer in kept for name in layer.shapes}
    for i in left:
        reasons.update({where[found[i].where(n)]: "left out" for n in found[i].shapes})
    plain = tuple(
        Plain(
            join(path),
            tuple(leaf.shape),
            reasons.get(i) or _reason(program, i, path, advice),
        )
        for i, (path, leaf) in enumerate(zip(paths, leaves))
        if i not in covered
    )
    if not kept:
        raise ValueError(
            f"{name} has no layer that can be tapped: "
            f"{ {p.path: p.reason for p in plain} or 'it has no parameters' }. Use a "
            "plain optimizer."
        )
    by_number = {i: found[i] for i in found if i not in left}
    refuse_repeated(
        by_number, [use for use in program.uses if use.parameter in by_number]
    )
    return Taps(kept, plain)


def _layers(
    program: Program,
    uses: Mapping[int, list[Use]],
    reasons: Mapping[int, str],
    paths: list[Path],
    leaves: list[Any],
    asked: Rule,
) -> dict[int, Layer]:
    """Returns the layers by the number of their kernel, in the order of the tree."""
    tapped = [i for i in sorted(uses) if i not in reasons]
    taken = {*uses, *program.elsewhere}
    biases = _biases({i: uses[i] for i in tapped}, taken)
    siblings = Counter(paths[i][:-1] for i in tapped)
    return {
        i: _layer(uses[i], paths[i], leaves[i], biases.get(i), paths, siblings, asked)
        for i in tapped
    }


def _hindrance(uses: list[Use], dtype: Any) -> str | None:
    """Returns why a kernel cannot be tapped."""
    uses = [use for use in uses if use.hindrance != IN_WHILE] or uses
    if not jnp.issubdtype(dtype, jnp.floating):
        return _NARROW.format(dtype)
    for use in uses:
        if use.hindrance is not None:
            return use.hindrance
        if jnp.issubdtype(use.dtype, jnp.complexfloating):
            return _COMPLEX
    geometries = {use.geometry for use in uses}
    return _GEOMETRIES if len(geometries) > 1 and tied_of(uses) is None else None


def _biases(uses: Mapping[int, list[Use]], taken: set[int]) -> dict[int, Bias]:
    """Returns the bias of every kernel that has one, in all of its uses and alone.

    Args:
      uses: by kernel.
      taken: parameters that are something else, too.
    """
    owners: defaultdict[int, set[int]] = defaultdict(set)
    for i, own in uses.items():
        for use in own:
            if use.bias is not None:
                owners[use.bias.parameter].add(i)
    return {
        i: own[0].bias
        for i, own in uses.items()
        if own[0].bias is not None
        and all(use.bias == own[0].bias for use in own)
        and own[0].bias.parameter not in taken
        and len(owners[own[0].bias.parameter]) == 1
    }


def _layer(
    uses: list[Use],
    path: Path,
    leaf: Any,
    bias: Bias | None,
    paths: list[Path],
    siblings: Counter[Path],
    asked: Rule,
) -> Layer:
    use, parent = as_tied(uses) or uses[0], path[:-1]
    home = parent
    if bias is not None:
        home = _common(parent, paths[bias.parameter][:-1])
    # At the root the name is left out where there is nothing else.
    alone = parent or len(paths) == (1 if bias is None else 2)
    name = parent if siblings[parent] == 1 and alone else path
    below = len(home)
    statistic = use.kind.statistic(asked)
    if not isinstance(statistic, Statistic):
        raise TypeError(
            f"layer '{join(name)}': `statistic` {asked!r} must choose a statistic for "
            f"{use.kind}, got {statistic!r}. Return e.g. lbo.Gram()."
        )
    floating = jnp.issubdtype(use.dtype, jnp.floating)
    kernel = use.stack + use.kind.kernel_shape
    offset = use.stack + use.kind.bias_shape
    return Layer(
        path=name,
        kind=use.kind,
        statistic=statistic,
        input_shape=use.shape,
        dtype=str(accumulation_dtype(use.dtype if floating else leaf.dtype)),
        kernel=join(path[below:]),
        bias=None if bias is None else join(paths[bias.parameter][below:]),
        stack=use.stack,
        home=None if home == name else home,
        arrangement=_needed(use.arrangement, kernel),
        bias_arrangement=None if bias is None else _needed(bias.arrangement, offset),
    )


def _needed(arrangement: Arrangement, shape: tuple[int, ...]) -> Arrangement | None:
    """Returns None where a parameter is a kernel or bias as it is."""
    same = arrangement.is_identity and arrangement.shape == shape
    return None if same else arrangement


def _common(a: Path, b: Path) -> Path:
    end = 0
    while end < min(len(a), len(b)) and a[end] == b[end]:
        end += 1
    return a[:end]


def _share(layers: Mapping[int, Layer], uses: Mapping[int, list[Use]]) -> list[Layer]:
    """Returns the layers; those with the same inputs share the first one's."""
    sources: dict[Hashable, Path] = {}
    source_of: dict[int, Path] = {}
    for i in dict.fromkeys(i for i in uses if i in layers):  # as they are called
        inputs = frozenset((use.number, use.at, use.scope) for use in uses[i])
        own = layers[i].statistic.reads_cotangent
        key = layers[i].path if own else (inputs, layers[i].design_key)
        source_of[i] = sources.setdefault(key, layers[i].path)
    return [
        layer if source_of[i] == layer.path else replace(layer, source=source_of[i])
        for i, layer in layers.items()
    ]


def _reason(program: Program, i: int, path: Path, advice: Advice) -> str:
    if i not in program.seen:
        return _UNUSED
    told = advice(path)
    if told is not None:
        return told
    return _VECTOR if len(program.shapes[i]) < 2 else _OTHER

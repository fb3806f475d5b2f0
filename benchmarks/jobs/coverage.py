"""How much of other people's models is preconditioned: parameters with a tap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from benchmarks.job import Job, Options, Result
from benchmarks.models import MODELS, Example
from benchmarks.tables import table
from linboost_optax import Taps, linen
from linboost_optax import nnx as lbo_nnx

Shape = tuple[int, ...]
BAR = 0.95  # of the kernels of every model


def run(name: str, options: Options) -> Result:
    """The taps of one model, traced abstractly, and what they leave out."""
    example = MODELS[name](options.quick)
    every = parameters(example)
    result: Result = {
        "title": example.title,
        "framework": example.framework,
        "parameters": count(shape for _, shape in every),
        "kernels": count(shape for own, shape in every if is_kernel(own, shape)),
    }
    try:
        taps = taps_of(example)
    except Exception as error:  # a model that is refused is a result, too
        return result | nothing(f"{type(error).__name__}: {error}")
    plain = [(part.path.rpartition("/")[2], part.shape) for part in taps.plain]
    kernels = [shape for own, shape in plain if is_kernel(own, shape)]
    return result | {
        "covered": result["parameters"] - count(shape for _, shape in plain),
        "kernels_covered": result["kernels"] - count(kernels),
        "left": reasons(taps.plain),
        "taps": str(taps).splitlines(),
    }


def nothing(why: str) -> Result:
    """The part of a result where no layer has a tap."""
    return {"covered": 0, "kernels_covered": 0, "left": {why: None}}


def taps_of(example: Example) -> Taps:
    """The taps of a model, from shapes alone."""
    args, kwargs = example.abstract()
    if isinstance(example.model, nn.Module):
        return linen.taps(example.model, *args, rngs=example.keys(), **kwargs)
    return lbo_nnx.taps(abstract_nnx(example), *args, **kwargs)


def abstract_nnx(example: Example) -> Any:
    """An NNX model with shapes in place of arrays."""
    assert not isinstance(example.model, nn.Module)
    return nnx.eval_shape(example.model, nnx.Rngs(0))


def parameters(example: Example) -> list[tuple[str, Shape]]:
    """Every parameter array of a model: its own name, and its shape."""
    if isinstance(example.model, nn.Module):
        init, keys = example.model.init, example.keys()

        def params(key: jax.Array) -> Any:
            args, kwargs = example.inputs(key)
            return nn.meta.unbox(init(keys, *args, **kwargs)["params"])

        tree = jax.eval_shape(params, jax.random.key(0))
    else:
        tree = nnx.to_pure_dict(nnx.state(abstract_nnx(example), nnx.Param))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(str(path[-1].key), leaf.shape) for path, leaf in leaves]


def is_kernel(name: str, shape: Shape) -> bool:
    """Whether an array is one that multiplies: no bias, no scale of a normalisation."""
    return len(shape) >= 2 and name not in ("bias", "scale")


def count(shapes: Iterable[Shape]) -> int:
    """Numbers in all arrays together."""
    return sum(map(math.prod, shapes))


def reasons(plain: Sequence[Any]) -> dict[str, int]:
    """Numbers in the kernels that are left out, by the reason why."""
    found: dict[str, int] = {}
    for part in plain:
        if is_kernel(part.path.rpartition("/")[2], part.shape):
            found[part.reason] = found.get(part.reason, 0) + math.prod(part.shape)
    return found


def describe(result: Result) -> str:
    """One model: its row, and the table that users see."""
    lines = result.get("taps")
    shown = ["", "```text", *lines, "```"] if lines else []
    return "\n".join([across([result]), *shown])


def across(results: Sequence[Result]) -> str:
    """One row a model."""
    header = ["model", "library", "parameters", "covered", "kernels", "left out"]
    return table(header, [row(result) for result in results])


def row(result: Result) -> list[str]:
    """Shares of all parameters and of kernels, and why kernels are left out."""
    covered = result["covered"] / result["parameters"]
    kernels = result["kernels_covered"] / max(result["kernels"], 1)
    left = [reason(why, size, result) for why, size in result["left"].items()]
    return [
        result["title"],
        result["framework"],
        f"{result['parameters']:,}",
        f"{covered:.1%}",
        f"{kernels:.1%}",
        "; ".join(left) or "none",
    ]


def reason(why: str, size: int | None, result: Result) -> str:
    """A reason, and the share of the kernels that it costs; for a cell of a table."""
    why = " ".join(why.split()).replace("|", "/")
    return why if size is None else f"{why} ({size / result['kernels']:.1%})"


JOB = Job(
    name="coverage",
    title="Coverage of other people's models",
    reading=(
        "The models of Flax's own examples, written again: of all parameters, and of "
        "kernels (arrays with two axes or more that are neither biases nor scales of a "
        "normalisation), the share that has a tap; the rest keeps its plain gradient, "
        f"and so does all of a model that is refused. {BAR:.0%} of the kernels is what "
        "every model should reach. Shapes at the sizes of the examples; nothing is run."
    ),
    tasks=tuple(MODELS),
    run=run,
    table=describe,
    across=across,
    single=False,
)

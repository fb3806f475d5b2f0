"""What large models would need: computed from shapes, none of them is run."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import linboost_optax as lbo
from benchmarks import paper
from benchmarks.job import BASELINE, Job, Options, Result
from benchmarks.models.decoder import DECODERS
from benchmarks.scaling.measure import bytes_of_one_device
from benchmarks.steps import bytes_of
from benchmarks.tables import table
from linboost_optax import linen
from linboost_optax._taps.work import count

DEVICES = (8, 256)
OPTIMIZERS = {
    "adam": ("Adam", lambda taps: optax.adam(1e-3)),
    "lnb": ("LNB", lambda taps: lbo.lnb(0.1, taps)),
    "whiten": ("whiten(Adam)", lambda taps: lbo.whiten(optax.adam(1e-3), taps)),
    "polar": ("polar", lambda taps: lbo.polar(1e-2, taps)),
}
EVERY = 5  # the rarest thing is remade in no more than one of so many steps


def run(name: str, options: Options) -> Result:
    """State, work and what is said of one model under every optimizer."""
    del options  # nothing runs: there is no quicker way
    sizes = DECODERS[name]
    taps = linen.taps(sizes.model, sizes.tokens)
    key = jax.random.key(0)
    params = jax.eval_shape(sizes.model.init, key, sizes.tokens)["params"]
    stats = jax.eval_shape(taps.zeros)
    report = taps.report()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    # Gathered for the forward and for the backward pass; gradients are summed.
    plainly = 3 * parameters
    found: dict[str, Any] = {}
    for optimizer, (label, build) in OPTIMIZERS.items():
        tx = optax.with_extra_args_support(build(taps))
        state = jax.eval_shape(tx.init, params)
        work = count(functools.partial(_update, tx), params, state, stats)
        taken = () if optimizer == BASELINE else taps.layers
        more = sum(paper.rows(layer, optimizer) for layer in taken)
        found[optimizer] = {
            "label": label,
            "state_bytes": bytes_of(state),
            "state_bytes_a_device": {
                str(devices): on_a_device(tx, params, devices) for devices in DEVICES
            },
            "flops": work.always + work.branched / EVERY,
            "said": plainly + more,
        }
    return {
        "title": sizes.title,
        "parameters": parameters,
        "tokens": math.prod(sizes.batch),
        "flops": report.flops,
        "statistic_bytes": report.statistic_bytes,
        "optimizers": found,
    }


def on_a_device(tx: optax.GradientTransformation, params: Any, devices: int) -> int:
    """Bytes of the state on each of some devices, rows of kernels sharded over them."""
    mesh = AbstractMesh((devices,), ("data",), axis_types=(AxisType.Auto,))

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        spec: list[Any] = [None] * leaf.ndim
        rows = max(leaf.ndim - 2, 0)  # the axis of rows, or of a vector's elements
        # A vocabulary may be of any length; then the other axis has to do.
        for axis in (rows, leaf.ndim - 1):
            if leaf.shape[axis] % devices == 0 and "data" not in spec:
                spec[axis] = "data"
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(placed, params)
    state = jax.eval_shape(tx.init, params)
    return bytes_of_one_device(state, lbo.state_sharding(tx, params))


def _update(tx: Any, params: Any, state: Any, stats: Any) -> Any:
    return tx.update(params, state, params, stats=stats)


def across(results: Sequence[Result]) -> str:
    """A row for each model and optimizer."""
    header = ["model", "optimizer", "state, GiB"]
    header += [f"a device of {devices}" for devices in DEVICES]
    header += ["work of the update", "said in a step, / Adam"]
    rows = []
    for result in results:
        title = f"{result['title']}, {result['parameters'] / 1e9:.2f} billion"
        adam = result["optimizers"][BASELINE]
        for entry in result["optimizers"].values():
            devices = entry["state_bytes_a_device"]
            rows.append(
                [
                    title,
                    entry["label"],
                    f"{entry['state_bytes'] / 2**30:.2f}",
                    *(f"{devices[str(each)] / 2**30:.3f}" for each in DEVICES),
                    f"{entry['flops'] / result['flops']:.2%}",
                    f"{entry['said'] / adam['said']:.3f}x",
                ]
            )
            title = ""
    return table(header, rows)


JOB = Job(
    name="large_models",
    title="Large models, on paper",
    reading=(
        "Computed from shapes, nothing is run. Parameters and state are in float32, "
        "the rows of kernels are sharded over all devices. Work is in floating-point "
        "operations, a share of those of the network's layers, forward and backward, "
        "for 64 sequences; all that is remade now and then is counted as if it were "
        f"every {EVERY} steps. What devices say to each other is by the formulas of "
        "`benchmarks/paper.py`, over three times the parameters: gathered twice and "
        "summed once."
    ),
    tasks=tuple(DECODERS),
    run=run,
    table=lambda result: across([result]),
    across=across,
    single=False,
)

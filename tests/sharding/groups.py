"""The cases, in groups of which each is one process."""

import itertools

from jax.sharding import AxisType

from tests.sharding.by_hand import Mapped, Pmapped
from tests.sharding.cases import OPTIMIZERS, STATISTICS, Case
from tests.sharding.compiled import Columns, OnlySums, OnPaper, SharedOut
from tests.sharding.losses import LOSSES, ByHand, EachExample, Shared
from tests.sharding.resumed import Resumed
from tests.sharding.strangers import Strangers

# What a solver refuses whatever the mesh is: see `tests/test_solvers.py`.
_REFUSED = {
    *(("cg", each) for each in STATISTICS if each not in ("gram", "inputs")),
    ("whiten", "inputs"),
    ("polar", "inputs"),
}
_LAYOUTS = {
    # On explicit axes Flax itself refuses other layouts of these layers.
    "explicit": {
        "dense": ("fsdp", "output"),
        "dense 3-d": ("replicated", "fsdp", "bias"),
        "several axes": ("replicated", "output"),
        "batch axes": ("fsdp", "output"),
        "conv": ("replicated",),
        "stack": ("replicated",),
    },
    "wrapped": {
        "dense": ("both",),
        "several axes": ("fsdp", "both"),
        "batch axes": ("both",),
        "conv": ("fsdp", "output", "both"),
        "embed": ("input", "output", "both"),
        "stack": ("stack", "both"),
    },
    "auto": {
        "dense": ("input",),
        "dense 3-d": ("output", "both"),
        "several axes": ("both",),
        "batch axes": ("both",),
        "conv": ("both",),
        "embed": ("both",),
        "stack": ("stack",),
        "boxed": ("output",),
    },
    "arrays": {
        "dense": ("fsdp",),
        "dense 3-d": ("output",),
        "conv": ("replicated",),
        "boxed": ("output",),
    },
    "eager": {"dense": ("fsdp",), "dense 3-d": ("output",)},
}
_layouts = [
    Case(model, layout, mode)
    for mode, models in _LAYOUTS.items()
    for model, layouts in models.items()
    for layout in layouts
]
# By XLA's own mistake a plain gradient of a grouped kernel is wrong where the batch is
# sharded over one axis of two; over both, or none, it is right.
_layouts += [
    Case("grouped conv", layout, mode, batch=batch)
    for layout, batch, modes in (
        ("output", None, ("wrapped", "auto")),
        ("replicated", ("data", "model"), ("explicit", "auto")),
    )
    for mode in modes
]
_statistics = [
    Case("dense 3-d", "output", "explicit", statistic, optimizer)
    for statistic, optimizer in itertools.product(STATISTICS, OPTIMIZERS)
    if (optimizer, statistic) not in _REFUSED and optimizer != "accumulated"
]
_statistics += [
    Case("dense 3-d", "output", "explicit", "auto", "accumulated"),
    Case("dense", "fsdp", "auto", "sketch of some rows", "accumulated"),
    Case("stack", "stack", "wrapped", "gram", "accumulated"),
]
_statistics += [
    Case(model, layout, "wrapped", statistic, optimizer)
    for model, layout in (("conv", "both"), ("embed", "both"), ("stack", "stack"))
    for statistic, optimizer in (
        ("gram of some rows", "whiten"),
        ("sketch", "whiten"),
        ("gram", "polar"),
        ("moments", "incomplete"),
        ("inputs", "cg"),
    )
]
_by_hand = [
    *(
        Mapped("dense", "replicated", "manual", what, check)
        for what in ("step", "loss")
        for check in (True, False)
    ),
    *(
        Mapped("dense 3-d", "output", rest, what, True)
        for what in ("step", "loss")
        for rest in ("auto", "explicit")
    ),
    Mapped("grouped conv", "replicated", "manual", "step", True),
    Mapped("dense", "replicated", "manual", "step", True, "gram", "cg"),
    Mapped("dense", "replicated", "manual", "step", True, "sketch", "whiten"),
    Mapped("dense", "replicated", "manual", "step", True, "moments", "incomplete"),
    Mapped("dense", "replicated", "manual", "step", True, "gram", "polar"),
    *(Pmapped(model, "gram") for model in ("dense", "grouped conv", "embed")),
]
_losses = [
    *(Shared(loss, Case("dense 3-d", "output", "explicit")) for loss in LOSSES),
    *(Shared(loss, Case("dense", "fsdp", "arrays")) for loss in LOSSES),
    EachExample(Case("dense 3-d", "output", "explicit")),
    *(ByHand(mode) for mode in ("explicit", "arrays", "auto")),
    *(
        Strangers(what, optimizer, axes)
        for what in ("stats", "state")
        for optimizer in ("cholesky", "whiten", "polar")
        for axes in (AxisType.Explicit, AxisType.Auto)
    ),
]
_compiled = [
    OnlySums(mode, statistic, optimizer)
    for mode in ("explicit", "auto")
    for statistic, optimizer in (
        ("gram", "cholesky"),
        ("gram", "whiten"),
        ("gram", "polar"),
        ("sketch", "cholesky"),
        ("moments", "incomplete"),
    )
]
_compiled += [
    Columns(kind, widths)
    for kind in (AxisType.Explicit, AxisType.Auto)
    for widths in ((192,), (192, 320), (320, 256, 192))
]
_compiled += [
    OnPaper(layout, optimizer)
    for layout in ("data", "rows", "columns")
    for optimizer in ("whiten", "polar")
]
_compiled += [SharedOut(width) for width in (64, 128)]
_resumed = [
    Resumed(
        Case(model, first, mode, statistic, optimizer),
        Case(model, second, mode, statistic, optimizer, shape=(1, 2)),
    )
    for mode in ("auto", "explicit")
    for model, first, second, statistic, optimizer in (
        ("dense", "fsdp", "output", "sketch of some rows", "whiten"),
        ("dense", "output", "replicated", "sketch", "polar"),
        ("dense 3-d", "fsdp", "output", "gram", "cholesky"),
    )
]
_resumed += [
    Resumed(
        Case("stack", "stack", "auto", "gram", optimizer),
        Case("stack", "replicated", "auto", "gram", optimizer, shape=(1, 2)),
    )
    for optimizer in ("whiten", "polar")
]
_float32 = [
    *(
        Case("dense 3-d", "output", "explicit", statistic, optimizer)
        for statistic, optimizer in (
            ("sketch of some rows", "cholesky"),
            ("moments", "incomplete"),
            ("gram", "cg"),
            ("gram of some rows", "whiten"),
            ("sketch", "polar"),
            ("auto", "accumulated"),
        )
    ),
    *(
        Case(model, layout, "wrapped", "sketch", "whiten")
        for model, layout in (("conv", "both"), ("embed", "both"), ("stack", "stack"))
    ),
]
# Of several processes, which have the devices between them.
PROCESSES = {
    str(case): case
    for case in (
        *(
            Case("dense 3-d", "output", "explicit", "auto", optimizer)
            for optimizer in ("cholesky", "whiten", "polar")
        ),
        Case("dense", "fsdp", "auto", "sketch of some rows", "whiten"),
        Case("embed", "both", "auto", "auto", "polar"),
        Case("stack", "stack", "auto", "gram", "whiten"),
    )
}
GROUPS = {
    group: {str(case): case for case in cases}
    for group, cases in {
        "layouts": _layouts,
        "statistics": _statistics,
        "by hand": _by_hand,
        "losses": _losses,
        "compiled": _compiled,
        "resumed": _resumed,
        "float32": _float32,
    }.items()
}

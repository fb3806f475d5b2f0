"""What a loss does with the tapped kernels, found out before it is differentiated.

A model is called with arrays that *come from* the parameters: themselves, or cast,
masked or averaged first; and other models are called beside it. Which kernel is which
is not for names to say: the loss is traced once with every kernel marked, and the marks
are followed through its jaxpr.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from linboost_optax._layer import Layer
from linboost_optax._taps import flow, places
from linboost_optax._taps.flow import Tags
from linboost_optax._taps.fresh import fresh_trace, survey_trace
from linboost_optax._taps.identity import Identities
from linboost_optax._taps.plan import Place, Plan
from linboost_optax._taps.table import Taps

# Numbers that are never used again: marks of an earlier survey are told from those of
# this one.
_sites = itertools.count()
# The sites of the surveys under way: a loss may differentiate with taps itself.
_surveyed: ContextVar[tuple[dict[int, Any], ...]] = ContextVar("surveyed", default=())


# What is carried to a kernel's call: maps a place and the array there to the array to
# take instead, and to any tree that the calls of the kernel's layer are to find.
Claim: TypeAlias = Callable[[Place, Any], tuple[Any, Any] | None]
# What is done at the call of such a layer: maps what was carried there, the call itself
# and its input to the output.
Visit: TypeAlias = Callable[[Any, Callable[[], jax.Array], jax.Array], jax.Array]


class Adapter(Protocol):
    """What a framework has to offer, besides finding the layers of a model."""

    def intercept(
        self, layers: Iterable[Layer], claim: Claim, visit: Visit
    ) -> AbstractContextManager[Any]:
        """Carries what is claimed into every call of a model while the context lasts.

        Args:
          layers: kernels of whose names and shapes are put to ``claim``.
          claim: called for every kernel that reaches a call of a model.
          visit: called at every call of a layer whose kernel was claimed, with the
            input that reaches the kernel.
        """
        ...


def survey(
    adapter: Adapter, taps: Taps, function: Callable[..., Any], params: Any, *data: Any
) -> Plan:
    """Traces ``function(params, *data)`` and returns what it does with tapped kernels.

    Raises:
      ValueError: if the parameters lack a tapped layer.
    """
    places_of: dict[int, Place] = {}
    inputs: defaultdict[int, list[int]] = defaultdict(list)
    identities = Identities()

    def claim(place: Place, kernel: Any) -> tuple[Any, Any]:
        site = next(_sites)
        places_of[site] = place
        marked = jax.tree.map(lambda leaf: flow.mark_kernel(site, leaf), kernel)
        return marked, Site(site)

    def visit(site: Site, call: Callable[[], jax.Array], x: jax.Array) -> jax.Array:
        inputs[site.number].append(identities.number(x))
        with flow.inside(site.number):
            y = call()
        return flow.mark_use(site.number, y, x)

    tags = _tags(taps, params) + [Tags(data=True)] * len(jax.tree.leaves(data))
    outer = _surveyed.get()
    token = _surveyed.set((*outer, places_of))
    try:
        for context in (survey_trace(taps), fresh_trace()):
            with context, adapter.intercept(taps.layers, claim, visit):
                closed = jax.make_jaxpr(function)(params, *data)
            found = flow.follow(closed, tags)
            known = places_of.keys() | frozenset().union(*outer)
            if found.uses.keys() | found.kernels.keys() <= known:
                break
            # Marks of an earlier survey: the loss jits what calls the model.
            places_of.clear()
            inputs.clear()
    finally:
        _surveyed.reset(token)
    own = {site: keys for site, keys in found.kernels.items() if site in places_of}

    stats_key = {layer.key: layer.stats_key for layer in taps.layers}
    times: Counter[tuple[str, int]] = Counter()
    uses: defaultdict[str, int] = defaultdict(int)
    seen: defaultdict[str, set[int]] = defaultdict(set)
    for site, keys in own.items():
        for key in keys:
            uses[key] += found.uses[site]
            seen[key] |= set(inputs[site])
            for number in inputs[site]:
                times[stats_key[key], number] += 1

    def of_layers(sites: Iterable[int]) -> frozenset[str]:
        return frozenset().union(*(own.get(site, ()) for site in sites))

    return Plan(
        layers={places_of[site]: keys for site, keys in own.items() if keys},
        uses=uses,
        outside=found.outside,
        inputs=seen,
        mixed=of_layers(found.mixed),
        hidden=of_layers(found.hidden),
        entered=of_layers(found.entered),
        nested=of_layers(found.nested),
        repeated=frozenset(key for (key, _), n in times.items() if n > 1),
    )


@jax.tree_util.register_static
@dataclass(frozen=True)
class Site:
    """The number of a place, carried to the calls of its layer."""

    number: int


def _tags(taps: Taps, params: Any) -> list[Tags]:
    """Returns the tags of the leaves of a tree of parameters: which layer's kernel."""
    tags = [Tags()] * len(jax.tree.leaves(params))
    for layer, where in kernels(taps, params):
        tags[where] = Tags(frozenset((layer.key,)))
    return tags


def kernels(taps: Taps, params: Any) -> list[tuple[Layer, int]]:
    """Returns every layer, and the number of its kernel's leaf among the parameters.

    Raises:
      ValueError: if the parameters lack a tapped layer.
    """
    leaves = jax.tree.leaves_with_path(params)
    index = places.index([(path, i) for i, (path, _) in enumerate(leaves)])
    found = []
    for layer in taps.layers:
        try:
            where = index[layer.where(layer.kernel)]
        except KeyError:
            raise ValueError(_LACKING.format(layer=layer)) from None
        got, want = jnp.shape(leaves[where][1]), layer.shapes[layer.kernel]
        if got != want:
            raise ValueError(_OTHER.format(layer=layer, want=want, got=got))
        found.append((layer, where))
    return found


_LACKING = (
    "`taps` has layer '{layer}', which the parameters lack: these taps belong to "
    "another model, or `params` is neither the 'params' collection nor the variables "
    "that hold it. Make the taps from the model whose parameters are passed; those of "
    "a model below a name in a larger dictionary are `Taps.join({{name: taps}})`."
)

_OTHER = (
    "`taps` has layer '{layer}' with a kernel of shape {want}, the parameters have "
    "{got}: these taps belong to another model. Make them from the model whose "
    "parameters are passed."
)

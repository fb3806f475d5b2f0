"""Orthogonalised momentum, in whitened coordinates: the recommended recipe."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from linboost_optax import _checks
from linboost_optax._layer import Affine, Layer
from linboost_optax._precondition import slots
from linboost_optax._precondition.placement import Placement
from linboost_optax._precondition.polar import Polar, PolarState
from linboost_optax._solvers import Cholesky, Solver
from linboost_optax._taps import Taps, check_taps
from linboost_optax._transforms import rates, wide
from linboost_optax._transforms.whiten import whiten

_DEFAULT = Cholesky()
_RMS = 0.2  # of Adam's steps, about: one learning rate then serves both


class ScaleByPolarState(NamedTuple):
    """State of what ``scale_by_polar`` does with the kernels of layers.

    Attributes:
      count: number of updates so far, scalar int32.
      momentum: moving average of the gradients; narrow floats in float32.
      factors: a ``PolarState`` by layer.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    momentum: optax.Updates
    factors: dict[str, PolarState]


def scale_by_polar(
    taps: Taps,
    *,
    momentum: float = 0.9,
    decay: float = 0.9,
    every: int = 5,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes the momentum of every layer orthogonal; all else is scaled by Adam.

    .. math::
      B = \beta B + (1 - \beta) G, \qquad
      u = 0.2 \sqrt{\max(d, o)}\; \bar B (\bar B^T \bar B)^{-1/2}, \qquad
      \bar B = \beta B + (1 - \beta) G

    for a kernel of ``d`` inputs and ``o`` outputs: all singular values of a step are
    equal, as in Muon. The elements of a step have the root mean square 0.2, about that
    of Adam's, so that one learning rate serves kernels and all else. Unlike Muon's
    iterations, the inverse root is that of a moving average, on the shorter side of
    the matrix, and is kept for ``every`` steps: a step costs one product. Of sides
    above 64 it is that of a sketch, so that nothing is as large as a side squared. It
    does not read statistics; ``polar`` runs it in whitened coordinates.

    Biases, norms, embeddings and everything else outside of tapped kernels are scaled
    by ``optax.scale_by_adam``.

    Args:
      taps: the tapped layers, from ``linen.taps``: they tell how kernels are matrices.
      momentum: :math:`\beta`, in [0, 1); default 0.9.
      decay: of the moving average of :math:`\bar B^T \bar B`, from one root to the
        next, in [0, 1); default 0.9.
      every: remake the root every so many steps, >= 1; default 5.
      b1: Adam's decay of the gradient, for all else; default 0.9.
      b2: Adam's decay of its square; default 0.999.
      eps: Adam's; default 1e-8.

    Returns:
      An ``optax.GradientTransformationExtraArgs``, an ``optax.partition``.

    Raises:
      TypeError: if ``taps`` is of another type.
      ValueError: if a hyper-parameter is out of range; in ``init`` if the taps belong
        to another model.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(2), jnp.arange(12.0).reshape(4, 3)
      >>> params, taps = model.init(jax.random.key(0), x), linen.taps(model, x)
      >>> tx = optax.chain(lbo.scale_by_polar(taps), optax.scale(-1e-2))
      >>> updates, state = tx.update(params, tx.init(params))
      >>> singular = jnp.linalg.svd(updates["params"]["kernel"])[1]
      >>> [round(float(s), 4) for s in singular]  # 0.01 * 0.2 * sqrt(3)
      [0.0035, 0.0035]

    References:
      Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks".
      Liu et al. (2025), arXiv:2502.16982, section 2.2: the scale 0.2.
    """
    check_taps(taps)
    _checks.fraction("decay", decay)
    _checks.whole("every", every, 1)
    if not _checks.is_array(momentum):
        _checks.fraction("momentum", momentum)
    # A row of an embedding is met by its own tokens alone: it has no matrix to balance.
    layers = tuple(each for each in taps.layers if not each.kind.one_hot)

    def labels(tree: optax.Params) -> Any:
        kernels = set()
        if not slots.is_placeholder(tree):
            kernels = {slot.kernel for slot in slots.find(layers, tree)}
        leaves, treedef = jax.tree.flatten(tree)
        names = ["polar" if i in kernels else "adam" for i in range(len(leaves))]
        return jax.tree.unflatten(treedef, names)

    return optax.partition(
        {
            "polar": _scale_kernels(layers, momentum, decay, every),
            "adam": optax.scale_by_adam(b1, b2, eps),
        },
        labels,
    )


def polar(
    learning_rate: optax.ScalarOrSchedule,
    taps: Taps,
    solver: Solver = _DEFAULT,
    *,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Whitens every layer's inputs, and balances its outputs: the recommended recipe.

    .. math::
      M + \gamma P = C C^T, \qquad
      \Delta W = -\eta \big( C^{-T} \mathrm{polar}(C^{-1} B) + \lambda W \big)

    with the momentum :math:`B` of the gradient, and :math:`\mathrm{polar}(U S V^T) = U
    V^T`: of all steps that change a layer's whitened outputs by no more than so much in
    any direction, the one that lowers the loss most. It does not depend on which factor
    :math:`C` is taken. It is ``whiten`` around ``scale_by_polar``.

    Args:
      learning_rate: :math:`\eta`, a float or a schedule. Steps have about the size of
        Adam's: start with the rate that you have.
      taps: the tapped layers, from ``linen.taps``.
      solver: see ``whiten``; default ``Cholesky()``.
      weight_decay: :math:`\lambda`, decoupled, >= 0; default 0.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; ``update`` needs the keyword
      argument ``stats``, and ``params`` if weights decay.

    Raises:
      TypeError: if ``taps`` or ``solver`` is of another type.
      ValueError: if a hyper-parameter is out of range, or the solver has no factor for
        some layer.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
      >>> import linboost_optax as lbo
      >>> from linboost_optax import linen
      >>> model, x = nn.Dense(1), jax.random.normal(jax.random.key(0), (64, 3))
      >>> y = x @ jnp.array([[1.0], [2.0], [3.0]])
      >>> taps, params = linen.taps(model, x), model.init(jax.random.key(1), x)
      >>> tx = lbo.polar(optax.linear_schedule(1.0, 0.0, 100), taps)
      >>> state = tx.init(params)
      >>> loss_fn = lambda p: jnp.mean((model.apply(p, x) - y) ** 2)
      >>> @jax.jit
      ... def step(params, state):
      ...     loss, grads, stats = linen.value_and_grad(loss_fn, taps)(params)
      ...     updates, state = tx.update(grads, state, params, stats=stats)
      ...     return optax.apply_updates(params, updates), state, loss
      >>> for _ in range(100):
      ...     params, state, loss = step(params, state)
      >>> bool(loss < 1e-3)
      True

    References:
      Munoz (2025), arXiv:2502.01131: boosting as whitening. Jordan et al. (2024),
      "Muon: an optimizer for hidden layers in neural networks".
    """
    rates.check(learning_rate, weight_decay, "polar(1e-2, taps)")
    # Without a decay the weights are not read: their coordinates are not computed.
    decays = _checks.is_array(weight_decay) or weight_decay > 0
    inner = optax.chain(
        scale_by_polar(taps),
        optax.add_decayed_weights(weight_decay) if decays else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )
    return whiten(inner, taps, solver)


def _scale_kernels(
    layers: tuple[Layer, ...], b: float, decay: float, every: int
) -> optax.GradientTransformation:
    """Returns what makes the momentum of kernels orthogonal; there is nothing else."""

    def bound(layer: Layer) -> Polar:
        return Polar(decay, every, layer.without_bias())

    def start(layer: Layer, *kernel: jax.Array) -> PolarState:
        state = bound(layer).init(slots.dtype(layer, *kernel))
        return bound(layer).placed(state, Placement.of(layer, *kernel))

    def init_fn(params: optax.Params) -> ScaleByPolarState:
        if slots.is_placeholder(params):
            states = {each.key: start(each) for each in layers}
        else:
            leaves, found = jax.tree.leaves(params), slots.find(layers, params)
            states = {s.layer.key: start(s.layer, leaves[s.kernel]) for s in found}
        return ScaleByPolarState(
            jnp.zeros((), jnp.int32), wide.zeros_like(params), states
        )

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByPolarState]:
        del params

        def average(m: jax.Array, g: jax.Array) -> jax.Array:
            return b * m + (1 - b) * g.astype(m.dtype)

        momentum = jax.tree.map(average, state.momentum, updates)
        ahead = jax.tree.map(average, momentum, updates)
        leaves, treedef = jax.tree.flatten(ahead)
        stepped, factors = list(leaves), {}
        for slot in slots.find(layers, ahead):
            metric, key = bound(slot.layer), slot.layer.key
            old = state.factors[key]
            factors[key] = slot.apply(
                _direction, metric, leaves, stepped, old, state.count, kept=old
            )
        new = ScaleByPolarState(
            jnp.asarray(optax.safe_increment(state.count)), momentum, factors
        )
        return jax.tree.unflatten(treedef, stepped), new

    return optax.GradientTransformation(init_fn, update_fn)


def _direction(
    bound: Polar, momentum: Affine, state: PolarState, step: jax.Array
) -> tuple[Affine, PolarState]:
    direction, state = bound.direction(state, momentum, step)
    return direction._replace(w=_RMS * direction.w), state

"""Iterative linear least squares as an Optax transformation."""

from typing import Any, cast

import optax

from linboost_optax.ills._data import check_distinct_units, is_known, make_batch
from linboost_optax.ills._model.matrices import read_matrices, write_matrices
from linboost_optax.ills._options import resolve, takes_options
from linboost_optax.ills._settings import Settings
from linboost_optax.ills._steps.iteration import iterate, start_state


@takes_options
def ills(*args: Any, **options: Any) -> optax.GradientTransformationExtraArgs:  # noqa: D417
    r"""Trains a small network by linear regression, without a learning rate.

    The objective is the weighted mean loss plus ridge penalties,

    .. math:: F(W) = \sum_{ik} w_{ik} \, \ell(y_{ik} - g(z_{ik}))
        + \rho \|W_L\|^2 + \rho_h \sum_{l < L} \|W_l\|^2,
        \qquad \sum_{ik} w_{ik} = 1,

    and it never rises: an iteration that would raise it changes nothing but the
    damping. Every iteration is linear regression on layer inputs:

    1. per hidden layer, regress every unit's ideal change of its pre-activation on the
       layer's inputs, weighted by how much the output depends on it;
    2. regress the residual on the effects of these directions and of the previous
       steps, with the last layer eliminated and damping :math:`\mu`;
    3. refit the last layer exactly; accept if :math:`F` falls.

    The first iteration is step 3 alone. :math:`\rho` starts larger than
    ``output_ridge`` (by 1e5, but not above 0.1) and falls to it, by 7 % an iteration
    while steps lower :math:`F` by 5 % or more, else by 30 %; the published method
    keeps it fixed. :math:`\rho_h`, where none is given, falls with it: it is
    :math:`v \delta^{3/2}`, where :math:`\delta` is what :math:`\rho` has above its
    final value, and :math:`v` the targets' variance or the squared scale of a robust
    loss, if less. Smooth functions are learnt first: early stopping needs that
    (``fit_ills`` tries two more such paths). A ``hidden_ridge`` of your own stays, and
    :math:`\rho` starts at 0.01 at most.

    ``method="published"`` instead inverts the activations (see References). With an
    output activation :math:`g` it measures its loss on
    :math:`g^{-1}(y)`, the ideal pre-activations of the output.

    ``update`` takes the whole training set, not a mini-batch, and ignores the
    gradients it is given, so that they may be None. It can be jitted, scanned,
    chained (``optax.scale(0.5)`` after it relaxes its steps) and masked.

    Names of a method, a combination, an importance or a loss are short for objects of
    ``linboost_optax.ills``, which are taken as well: ``loss=Huber(1.5)``, or one of
    your own. A method that is an object brings its own ``combine``, ``importance``,
    ``relaxation`` and ``margin``, a loss its own ``tuning``.

    Args:
      network: the dense layers, from ``network``, ``linen.network`` or
        ``nnx.network``.
      method: ``"weighted"`` (default) or ``"published"``.
      combine: what step 2 may scale: each direction of a ``"layer"`` (default), each
        ``"unit"`` of it (dearer, for noise-free or deep problems), or every
        ``"parameter"``, which is Levenberg-Marquardt with the last layer
        eliminated and costs the cube of the number of hidden parameters.
      importance: ``"unit"`` (default) weights every unit's regression on its own;
        ``"shared"`` lets a layer's units share one Gram matrix: cheaper for wide
        inputs, slower to converge.
      damping: start value of :math:`\mu` >= 0, relative to a unit diagonal; default
        1e-2; for the published method of the minimum-norm change.
      ridge: of the hidden regressions, >= 0, relative to the mean diagonal; default
        1e-5.
      output_ridge: final :math:`\rho` >= 0; default 1e-6; 0 leaves the last layer
        free from the start.
      hidden_ridge: :math:`\rho_h` >= 0; default 0, which is its final value.
      loss: ``"squared"`` (default), ``"huber"`` or ``"tukey"``, for outliers.
        Tukey's starts as the Huber loss that lies just above it, until a step
        gains less than 5 %.
      tuning: constant of a robust loss, > 0, in robust standard deviations of the
        residual; default None is 1 for Huber and 4.685 for Tukey.
      relaxation: published method only, share in (0, 1] of the regression's
        solution that is taken; default 1.
      margin: published method only, distance in (0, 0.5) kept from the ends of an
        activation's range; default 1e-3.
      chunk_size: samples taken at a time; memory beyond the data grows with it and
        no longer with their number; default None takes all.
      axis_name: axis of ``shard_map`` or ``pmap`` over which samples are spread;
        default None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with ``IllsState``. Its ``update``
      needs ``params`` and the keyword arguments ``inputs`` ``[sample, feature]`` and
      ``targets`` ``[sample, output]`` (or ``[sample]``), and takes ``sample_weight``
      ``[sample]`` and a boolean ``mask`` shaped like the targets, true where a target
      is known.

    Raises:
      TypeError: if ``network`` is not a ``Network``.
      ValueError: if an argument is out of its range, or the published method meets
        an activation without inverse; in ``init`` and ``update`` if the parameters
        or the data do not fit.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from linboost_optax import ills
      >>> x = jnp.linspace(-2, 2, 50)[:, None]
      >>> params = ills.init_mlp(jax.random.key(0), (1, 8, 1))
      >>> tx = ills.ills(ills.network(params))
      >>> state = tx.init(params)
      >>> data = {"inputs": x, "targets": jnp.sin(2 * x)}
      >>> update = jax.jit(lambda *args: tx.update(None, *args, **data))
      >>> for _ in range(40):
      ...     updates, state = update(state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(state.objective < 1e-3)
      True

    References:
      Khadilkar (2023), arXiv:2307.05189, for the published method. Golub & Pereyra
      (1973), SIAM J. Numer. Anal. 10, for variable projection.
    """
    return transformation(resolve(*args, **options))


def transformation(settings: Settings) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation of checked settings."""
    network = settings.network

    def init(params):
        matrices = read_matrices(network, params)
        if is_known(*matrices):
            check_distinct_units(network, matrices)
        return start_state(settings, params, matrices[0].dtype)

    def update(
        updates,
        state,
        params=None,
        *,
        inputs,
        targets,
        sample_weight=None,
        mask=None,
        **extra_args,
    ):
        del updates, extra_args
        if params is None:
            raise ValueError(
                "`params` must be given to `update`, got None. Call "
                "`tx.update(None, state, params, inputs=x, targets=y)`."
            )
        matrices = read_matrices(network, params)
        batch = make_batch(
            network,
            inputs,
            targets,
            sample_weight,
            mask,
            matrices[0].dtype,
            settings.axis_name,
        )
        steps, state = iterate(settings, params, matrices, state, batch)
        return write_matrices(network, params, steps), state

    # Optax types `updates` as never None; here nothing reads them.
    return optax.GradientTransformationExtraArgs(init, cast(Any, update))

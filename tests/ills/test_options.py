"""Options: names and objects, one signature, choices from outside the package."""

import dataclasses
import inspect
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linboost_optax import ills
from linboost_optax.ills._loop import run_loop
from linboost_optax.ills._options import resolve
from linboost_optax.ills._steps.combine import COMBINES
from linboost_optax.ills._steps.importance import IMPORTANCES
from linboost_optax.ills._steps.losses import LOSSES, scaled_loss
from linboost_optax.ills._steps.methods import METHODS
from linboost_optax.sklearn import IllsRegressor
from tests.ills.problems import X, Y, fit, never_rises

NETWORK = ills.network([jnp.ones((2, 4)), jnp.ones((4, 1))])
TABLES = {
    "method": METHODS,
    "combine": COMBINES,
    "importance": IMPORTANCES,
    "loss": LOSSES,
}


# What a user may write in a file of their own.


@dataclasses.dataclass(frozen=True)
class PseudoHuber:
    """Quadratic near 0, linear far out, and smooth."""

    width: Any = 1.0

    needs_scale: ClassVar[bool] = True

    def value(self, r, robust):
        return scaled_loss(
            lambda u: self.width**2 * (jnp.sqrt(1 + (u / self.width) ** 2) - 1),
            r,
            robust,
        )

    def weight(self, r, robust):
        return 1 / jnp.sqrt(1 + (r / robust.scale / self.width) ** 2)

    def error(self, r):
        return jnp.abs(r)


@dataclasses.dataclass(frozen=True)
class PerNetwork:
    """One coefficient for the new directions of all layers, one for the old."""

    takes_directions: ClassVar[bool] = True

    def count(self, directions):
        return len(directions[0])

    def effects(self, network, matrices, directions, f):
        each = ills.PerLayer().effects(network, matrices, directions, f)
        return each.reshape(len(directions), -1, *each.shape[1:]).sum(axis=0)

    def expand(self, directions, coefficients):
        return [
            jnp.tensordot(coefficients, jnp.stack(group), 1) for group in directions
        ]


def test_a_loss_from_outside_trains():
    y = Y.at[0, 0].set(30.0)
    result = fit(X, y, loss=PseudoHuber())
    assert never_rises(result.objectives)
    assert np.isfinite(result.state.scale)
    squared = fit(X, y)
    network = ills.network(result.params)

    def typical_error(run):
        return np.median(np.abs(ills.predict(network, run.params, X) - Y))

    assert typical_error(result) < 0.5 * typical_error(squared)


def test_a_loss_from_outside_compiles_once_for_all_its_numbers():
    before = run_loop._cache_size()
    for width in (1.0, 2.0, 3.0):
        fit(X, Y, loss=PseudoHuber(width))
    assert run_loop._cache_size() - before <= 1


def test_a_combination_from_outside_trains():
    result = fit(X, Y, sizes=(2, 4, 3, 1), combine=PerNetwork(), hidden_ridge=1e-4)
    assert never_rises(result.objectives)
    assert result.objectives[-1] < 0.5 * result.objectives[0]


def test_a_table_takes_a_choice_with_options_of_its_own(monkeypatch):
    monkeypatch.setitem(LOSSES, "pseudo_huber", PseudoHuber)
    assert resolve(NETWORK, loss="pseudo_huber").loss == PseudoHuber()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning": 2.0}, "`tuning` must be left at .* tuning=2.0 with loss='squared'"),
        (
            {"tuning": 2.0, "loss": ills.Huber()},
            "`tuning` must .* Give it to the object that is `loss`",
        ),
        ({"margin": 0.1}, "`margin` must be left at .* another `method`"),
        ({"relaxation": 0.5}, "`relaxation` must be left at its default"),
        (
            {"method": "published", "combine": "unit"},
            "`combine` must be left at .* with method='published'",
        ),
        (
            {"method": "published", "importance": ills.SharedImportance()},
            "`importance` must be left at",
        ),
        (
            {
                "method": ills.Weighted(ills.PerLayer(), ills.UnitImportance()),
                "combine": "parameter",
            },
            "`combine` must .* Give it to the object that is `method`",
        ),
    ],
)
def test_an_option_that_nothing_reads_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ills.ills(NETWORK, **options)


def test_a_traced_option_that_nothing_reads_is_refused_too():
    with pytest.raises(ValueError, match="`tuning` must be left at its default"):
        resolve(NETWORK, tuning=jnp.float32(2.0))


# Names and objects.


@pytest.mark.parametrize(
    ("names", "objects"),
    [
        ({}, {"method": ills.Weighted(ills.PerLayer(), ills.UnitImportance())}),
        ({"combine": "unit"}, {"combine": ills.PerUnit()}),
        ({"combine": "parameter"}, {"combine": ills.PerParameter()}),
        ({"importance": "shared"}, {"importance": ills.SharedImportance()}),
        ({"loss": "squared"}, {"loss": ills.Squared()}),
        ({"loss": "huber", "tuning": 2}, {"loss": ills.Huber(2.0)}),
        ({"loss": "tukey"}, {"loss": ills.Tukey()}),
        (
            {"method": "published", "margin": 0.1},
            {"method": ills.Published(relaxation=1.0, margin=0.1)},
        ),
    ],
)
def test_names_are_short_for_objects(names, objects):
    assert resolve(NETWORK, **names) == resolve(NETWORK, **objects)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ills.Huber(0.0), "`tuning` must be > 0, got 0.0"),
        (lambda: ills.Tukey(-1.0), "`tuning` must be > 0, got -1.0"),
        (lambda: ills.Published(1.5, 1e-3), r"`relaxation` must be in \(0, 1\]"),
        (lambda: ills.Published(1.0, 0.5), r"`margin` must be in \(0, 0.5\)"),
        (lambda: resolve(NETWORK, loss=3), "`loss` must be one of .*, got 3"),
        (lambda: resolve(NETWORK, loss=ills.Huber), "`loss` must be one of"),
        (lambda: resolve(NETWORK, loss=ills.PerUnit()), "`loss` must be one of"),
        (lambda: resolve(NETWORK, combine=[]), "`combine` must be one of"),
    ],
)
def test_objects_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def every_choice():
    return [
        resolve(NETWORK, **{name: key})
        for name, table in TABLES.items()
        for key in table
        if (name, key) not in {("combine", "layer"), ("importance", "unit")}
        and (name, key) != ("loss", "squared")  # The defaults, which "weighted" is.
    ]


def test_structures_of_different_choices_differ():
    """Or a loop compiled for one loss would run for another."""
    structures = [jax.tree.structure(settings) for settings in every_choice()]
    assert len(structures) == 7
    for one, other in itertools.combinations(structures, 2):
        assert one != other


def test_numbers_are_leaves_and_nothing_else():
    settings = resolve(NETWORK, loss="huber", tuning=2, damping=1, hidden_ridge=0.5)
    assert jax.tree.leaves(settings) == [2.0, 1.0, 1e-5, 1e-6, 0.5]
    doubled = jax.tree.map(lambda number: 2 * number, settings)
    assert doubled.loss == ills.Huber(4.0)
    assert doubled.network is NETWORK
    assert jax.tree.leaves(resolve(NETWORK)) == [1e-2, 1e-5, 1e-6]  # No hidden ridge.
    published = resolve(NETWORK, method="published")
    assert jax.tree.leaves(published) == [1.0, 1e-3, 1e-2, 1e-5, 1e-6]


# One signature.


def test_ills_shows_the_options():
    shown = inspect.signature(ills.ills)
    assert list(shown.parameters) == list(inspect.signature(resolve).parameters)
    assert len(shown.parameters) == 14
    for name, parameter in shown.parameters.items():
        assert f"\n      {name}: " in ills.ills.__doc__
        assert (parameter.default is inspect.Parameter.empty) == (name == "network")


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'lambda_'"):
        fit(X, Y, lambda_=1.0)


def test_the_estimator_has_the_same_choices_and_defaults():
    own, theirs = (inspect.signature(f).parameters for f in (resolve, IllsRegressor))
    for name, table in TABLES.items():
        assert theirs[name].default == own[name].default
        (constraint,) = IllsRegressor._parameter_constraints[name]
        assert constraint.options == set(table)

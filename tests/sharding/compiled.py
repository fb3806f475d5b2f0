"""What devices say to each other in a compiled step."""

import re
from dataclasses import dataclass

import jax

from linboost_optax import linen
from tests.sharding.cases import OPTIMIZERS, STATISTICS, Case, loss_of, step_of
from tests.sharding.models import start

_COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
    r"(?:-start)?\("
)


@dataclass(frozen=True)
class OnlySums:
    """Data-parallel steps sum gradients and statistics, and gather nothing."""

    mode: str
    statistic: str
    optimizer: str

    def __str__(self):
        return "only sums; " + "; ".join(vars(self).values())

    def __call__(self):
        place = Case("dense", "replicated", self.mode)
        model, params, x = start(place.model)
        loss = loss_of(model)
        taps = linen.taps(model, x, statistic=STATISTICS[self.statistic])
        tx = OPTIMIZERS[self.optimizer](taps)
        step = step_of(loss, tx, linen.value_and_grad(loss, taps))
        before = jax.config.values["jax_disable_most_optimizations"]
        jax.config.update("jax_disable_most_optimizations", False)
        try:
            with place.context():
                params, x = place.placed(params, x)
                text = jax.jit(step).lower(params, tx.init(params), x).compile()
        finally:
            jax.config.update("jax_disable_most_optimizations", before)
        found = _COLLECTIVE.findall(text.as_text())
        assert set(found) == {"all-reduce"}, found

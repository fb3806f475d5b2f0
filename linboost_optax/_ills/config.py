"""The static facts of one ILLS optimizer, checked once."""

import dataclasses
from typing import Any

from linboost_optax._activations import INVERTIBLE
from linboost_optax._ills.robust import LOSSES
from linboost_optax._network import Network

METHODS = ("weighted", "published")
COMBINES = ("layer", "unit", "parameter")
IMPORTANCES = ("unit", "shared")
_NUMBERS = (
    "damping",
    "ridge",
    "output_ridge",
    "hidden_ridge",
    "tuning",
    "relaxation",
    "margin",
)


@dataclasses.dataclass(frozen=True)
class IllsConfig:
    """Arguments of :func:`ills`, which documents them."""

    network: Network
    method: str = "weighted"
    combine: str = "layer"
    importance: str = "unit"
    damping: Any = 1e-2
    ridge: Any = 1e-5
    output_ridge: Any = 1e-6
    hidden_ridge: Any = 0.0
    loss: str = "squared"
    tuning: Any = None
    relaxation: Any = 1.0
    margin: Any = 1e-3
    chunk_size: int | None = None
    axis_name: Any = None

    def __post_init__(self):
        if not isinstance(self.network, Network):
            raise TypeError(
                f"`network` must be a `Network`, got {type(self.network).__name__}. "
                "Describe yours with `network(params)`, `linen.network(model, x)` or "
                "`nnx.network(model, x)`."
            )
        _check_choice("method", self.method, METHODS)
        _check_choice("combine", self.combine, COMBINES)
        _check_choice("importance", self.importance, IMPORTANCES)
        _check_choice("loss", self.loss, tuple(LOSSES))
        _check_numbers(self)
        _check_chunk_size(self.chunk_size)
        if self.method == "published":
            _check_inverses(self.network)

    def split(self) -> tuple["IllsConfig", dict[str, float]]:
        """What a compiled function depends on, and the numbers it can be given.

        A hidden ridge of 0 stays static, because it saves work.
        """
        numbers = {
            name: float(getattr(self, name))
            for name in _NUMBERS
            if getattr(self, name) is not None
            and not (name == "hidden_ridge" and self.hidden_ridge == 0)
        }
        neutral = dict.fromkeys(numbers, 1.0) | {"margin": 0.1}
        return dataclasses.replace(self, **neutral), numbers

    def with_numbers(self, numbers: dict[str, Any]) -> "IllsConfig":
        """The configuration that :meth:`split` took apart."""
        return dataclasses.replace(self, **numbers)

    @property
    def cutoff(self) -> Any:
        """The robust loss's tuning constant: the user's, or the usual one."""
        kind = LOSSES[self.loss]
        if self.tuning is None and kind is not None:
            return kind.tuning
        return self.tuning


def _check_choice(name: str, got: Any, options: tuple[str, ...]) -> None:
    if got not in options:
        raise ValueError(f"`{name}` must be one of {list(options)}, got {got!r}.")


def _check_numbers(config: IllsConfig) -> None:
    # Traced values (`optax.inject_hyperparams`) are compared by nobody.
    def known(name):
        value = getattr(config, name)
        return value if isinstance(value, int | float) else None

    for name in ("damping", "ridge", "output_ridge", "hidden_ridge"):
        value = known(name)
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(
                f"`{name}` must be finite and >= 0, got {value}. "
                "Use a small positive value, e.g. 1e-5."
            )
    tuning = known("tuning")
    if tuning is not None and not tuning > 0:
        raise ValueError(
            f"`tuning` must be > 0, got {tuning}. Leave it out for the usual constant."
        )
    relaxation = known("relaxation")
    if relaxation is not None and not 0 < relaxation <= 1:
        raise ValueError(
            f"`relaxation` must be in (0, 1], got {relaxation}. "
            "1 takes the regression's solution."
        )
    margin = known("margin")
    if margin is not None and not 0 < margin < 0.5:
        raise ValueError(
            f"`margin` must be in (0, 0.5), got {margin}. Use a small value, e.g. 1e-3."
        )


def _check_chunk_size(chunk_size: Any) -> None:
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(
            f"`chunk_size` must be a positive integer or None, got {chunk_size!r}. "
            "Use e.g. 8192, or None for all samples at once."
        )


def _check_inverses(network: Network) -> None:
    for layer in network.layers:
        if layer.activation.inverse is None:
            raise ValueError(
                "`method='published'` must invert every activation, but "
                f"`{layer.kernel}` is followed by {layer.activation.name!r}, which has "
                f"no inverse. Use one of {list(INVERTIBLE)}, an `Activation` with an "
                "`inverse`, or `method='weighted'`."
            )

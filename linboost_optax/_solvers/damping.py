"""What is done to a covariance before it is inverted."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Damping:
    r"""A ridge, and shrinkage of correlations.

    .. math::
      \Sigma \to (1 - a) \Sigma + a\, \mathrm{diag}(\Sigma) + \gamma I

    The ridge is absolute: features that hardly vary stay as they are. The shrinkage is
    relative, to every feature's own variance: inputs in other units, all or one of
    them, change nothing, as with Marquardt's damping. It bounds how far directions in
    which correlated features hardly differ are stretched, whatever the scale of the
    inputs, which no ridge does for all layers of a network. Variances are kept.

    Attributes:
      ridge: :math:`\gamma`, >= 0.
      shrinkage: :math:`a`, in [0, 1].
    """

    ridge: float = 0.0
    shrinkage: float = 0.0

    @property
    def kept(self) -> float:
        """What is left of correlations, :math:`1 - a`."""
        return 1 - self.shrinkage

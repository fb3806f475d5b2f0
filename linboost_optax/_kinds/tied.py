"""Embeddings that are the output layer, too: one matrix with two kinds of inputs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from linboost_optax._kinds.base import Kind
from linboost_optax._kinds.dense import Dense
from linboost_optax._kinds.embed import Embed
from linboost_optax._statistics.base import Rule, Statistic
from linboost_optax._statistics.uses import Uses


@dataclass(frozen=True)
class Tied(Embed):
    """An embedding that is looked up, and whose transpose is a dense kernel.

    Its matrix is laid out as the look-up's, ``[token, component]``; its statistic is
    that of both uses, whatever is asked for each.
    """

    name: ClassVar[str] = "Tied"

    @classmethod
    def of(cls, kinds: Iterable[Kind]) -> "Tied | None":
        """Returns the kind of a layer whose uses are of these kinds.

        None unless they are those of a tied embedding. That the dense kernel is the
        embedding transposed is for the caller to know.
        """
        found = set(kinds)
        for kind in found:
            if isinstance(kind, Embed):
                tied = cls(kind.vocabulary, kind.size)
                return tied if found == {tied.lookup, tied.attend} else None
        return None

    @property
    def lookup(self) -> Embed:
        """The kind of the look-ups alone."""
        return Embed(self.vocabulary, self.size)

    @property
    def attend(self) -> Dense:
        """The kind of the output layer alone: its kernel is the transpose."""
        return Dense((), (self.size,), (self.vocabulary,))

    @property
    def design_key(self) -> "Tied":
        return self  # inputs of one use do not tell those of the other

    def flops(self, shape: tuple[int, ...]) -> float:
        """Returns those of both uses, of as many samples."""
        return self.lookup.flops(shape) + self.attend.flops((*shape, self.size))

    def statistic(self, asked: Rule) -> Statistic:
        return Uses.of(self, asked)

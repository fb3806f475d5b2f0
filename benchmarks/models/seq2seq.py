"""Addition by an LSTM that reads and one that writes, on one-hot characters."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models._example import Example

END = 1  # the character that ends a sequence
Carry = tuple[Any, jax.Array]


class Writer(nn.RNNCellBase):
    """A cell with its read-out, which draws a character and may read it next."""

    width: int
    vocabulary: int
    teacher_force: bool

    @nn.compact
    def __call__(self, carry: Carry, x: jax.Array) -> tuple[Carry, Any]:
        state, last = carry
        state, y = nn.LSTMCell(self.width)(state, x if self.teacher_force else last)
        logits = nn.Dense(self.vocabulary)(y)
        drawn = jax.random.categorical(self.make_rng("lstm"), logits)
        drawn = jax.nn.one_hot(drawn, self.vocabulary, dtype=logits.dtype)
        return (state, drawn), (logits, drawn)

    @property
    def num_feature_axes(self) -> int:
        """Axes of one step's input that are no batch."""
        return 1


class Seq2seq(nn.Module):
    """The reader's last state is where the writer starts."""

    width: int
    vocabulary: int
    teacher_force: bool = True

    @nn.compact
    def __call__(self, query: jax.Array, answer: jax.Array) -> Any:
        reader = nn.RNN(nn.LSTMCell(self.width), return_carry=True, name="reader")
        writer = nn.RNN(
            Writer(self.width, self.vocabulary, self.teacher_force),
            split_rngs={"params": False, "lstm": True},
            name="writer",
        )
        lengths = jnp.argmax(jnp.argmax(query, axis=-1) == END, axis=-1)
        state, _ = reader(query, seq_lengths=lengths)
        return writer(answer[:, :-1], initial_carry=(state, answer[:, 0]))


def seq2seq(tiny: bool = False) -> Example:
    """Sums of numbers with three digits, 15 characters, 512 units."""
    width, vocabulary, batch, length = (6, 5, 3, 4) if tiny else (512, 15, 128, 8)

    def sample(key: jax.Array) -> tuple[jax.Array, ...]:
        drawn = jax.random.randint(key, (2, batch, length), 2, vocabulary)
        drawn = drawn.at[:, :, -1].set(END)
        one_hot = jax.nn.one_hot(drawn, vocabulary)
        return one_hot[0], one_hot[1]

    return Example(
        title="seq2seq, two LSTMs",
        model=Seq2seq(width, vocabulary),
        sample=sample,
        rngs=("lstm",),
    )

"""Actor and critic of PPO on Atari: strided convolutions under two heads."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models._example import Example


class ActorCritic(nn.Module):
    """Logarithms of the policy's probabilities, and the value of the state."""

    actions: int
    convolutions: tuple[tuple[int, int, int], ...] = (
        (32, 8, 4),
        (64, 4, 2),
        (64, 3, 1),
    )
    hidden: int = 512

    @nn.compact
    def __call__(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = frames.astype(jnp.float32) / 255
        for i, (width, size, stride) in enumerate(self.convolutions, start=1):
            layer = nn.Conv(width, (size, size), (stride, stride), name=f"conv{i}")
            x = nn.relu(layer(x))
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x.reshape(x.shape[0], -1)))
        policy = nn.log_softmax(nn.Dense(self.actions, name="logits")(x))
        return policy, nn.Dense(1, name="value")(x)


def ppo(tiny: bool = False) -> Example:
    """Four frames of 84 x 84 bytes; six actions, as Pong has."""
    model, shape = ActorCritic(6), (256, 84, 84, 4)
    if tiny:
        model = ActorCritic(3, ((2, 4, 2), (3, 3, 1)), hidden=5)
        shape = (3, 8, 8, 2)
    return Example(
        title="PPO, actor and critic",
        model=model,
        sample=lambda key: (jax.random.randint(key, shape, 0, 256, jnp.uint8),),
    )

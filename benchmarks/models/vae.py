"""A variational autoencoder of MNIST: dense layers, and a key among its arguments."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models._example import Example


class Encoder(nn.Module):
    """Mean and logarithm of the variance of the code, from one hidden layer."""

    hidden: int
    code: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        mean = nn.Dense(self.code, name="mean")(x)
        return mean, nn.Dense(self.code, name="logvar")(x)


class Decoder(nn.Module):
    """Logits of the pixels."""

    hidden: int
    pixels: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        z = nn.relu(nn.Dense(self.hidden, name="hidden")(z))
        return nn.Dense(self.pixels, name="pixels")(z)


class VAE(nn.Module):
    """Submodules in `setup`; `generate` is a second way in."""

    pixels: int = 784
    hidden: int = 500
    code: int = 20

    def setup(self):
        self.encoder = Encoder(self.hidden, self.code)
        self.decoder = Decoder(self.hidden, self.pixels)

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        mean, logvar = self.encoder(x)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return self.decoder(mean + noise * jnp.exp(logvar / 2)), mean, logvar

    def generate(self, z: jax.Array) -> jax.Array:
        """Images of codes."""
        return nn.sigmoid(self.decoder(z))


def vae(tiny: bool = False) -> Example:
    """784 pixels, 500 hidden units, a code of 20."""
    model, batch = (VAE(12, 6, 3), 4) if tiny else (VAE(), 128)
    return Example(
        title="VAE",
        model=model,
        sample=lambda key: (jax.random.uniform(key, (batch, model.pixels)), key),
    )

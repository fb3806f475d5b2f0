"""ResNets for ImageNet: convolutions without biases, all behind BatchNorm."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models._example import Example


class Block(nn.Module):
    """A branch of convolutions, beside a shortcut that is projected where it must be.

    The last scale of the branch starts at zero, so that the block starts as its
    shortcut. The layers come from outside, with what is common to all of them bound.
    """

    width: int
    stride: int
    conv: Any
    norm: Any
    bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        strides = (self.stride, self.stride)
        if self.bottleneck:
            kernels, widths = (1, 3, 1), (self.width, self.width, 4 * self.width)
            steps = ((1, 1), strides, (1, 1))
        else:
            kernels, widths = (3, 3), (self.width, self.width)
            steps = (strides, (1, 1))
        y = x
        for size, width, step in zip(kernels[:-1], widths[:-1], steps[:-1]):
            y = nn.relu(self.norm()(self.conv(width, (size, size), step)(y)))
        y = self.conv(widths[-1], (kernels[-1], kernels[-1]), steps[-1])(y)
        y = self.norm(scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = self.conv(widths[-1], (1, 1), strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Four stages, each with half of the resolution and twice the width."""

    stages: tuple[int, ...]
    bottleneck: bool
    width: int = 64
    classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = conv(
            self.width, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init"
        )(x)
        x = nn.relu(norm(name="norm_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, blocks in enumerate(self.stages):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                x = Block(self.width * 2**stage, stride, conv, norm, self.bottleneck)(x)
        return nn.Dense(self.classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))


def resnet18(tiny: bool = False) -> Example:
    """Two plain blocks a stage."""
    return _resnet("ResNet-18", (2, 2, 2, 2), bottleneck=False, tiny=tiny)


def resnet50(tiny: bool = False) -> Example:
    """The default of the example: 16 blocks with bottlenecks."""
    return _resnet("ResNet-50", (3, 4, 6, 3), bottleneck=True, tiny=tiny)


def _resnet(
    title: str, stages: tuple[int, ...], bottleneck: bool, tiny: bool
) -> Example:
    model = ResNet(stages, bottleneck)
    shape = (128, 224, 224, 3)
    if tiny:
        model = ResNet((1, 1), bottleneck, width=4, classes=5)
        shape = (2, 16, 16, 3)
    return Example(
        title=title,
        model=model,
        sample=lambda key: (jax.random.normal(key, shape),),
        static={"train": True},
    )

"""What to do about parameters of Flax's own modules that are no kernels."""

import flax.linen as nn

_SCALES = "scales and shifts channels one by one; it has no kernel"

ADVICE: dict[type[nn.Module], str] = {
    nn.BatchNorm: _SCALES,
    nn.LayerNorm: _SCALES,
    nn.RMSNorm: _SCALES,
    nn.GroupNorm: _SCALES,
    nn.InstanceNorm: _SCALES,
    nn.PReLU: "is not linear in its input",
}

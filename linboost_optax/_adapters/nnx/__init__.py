"""The Flax NNX adapter."""

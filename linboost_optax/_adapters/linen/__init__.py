"""The Flax Linen adapter."""

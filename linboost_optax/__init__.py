"""Layer-wise least-squares optimizers for JAX."""

__version__ = "0.1.0"

"""Strict JAX settings for every test: silent promotion hides dtype bugs."""

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

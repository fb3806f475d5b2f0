"""Optimizers that whitening is compared with, each in a file of its own.

They are written down from their papers for a race on equal terms, not for use: plain
hyperparameters, and curvature that is refreshed every 10 steps, as it is in ours. Two
are packages of others, in the extra `rivals`, and are imported when they are built:

- `psgd-jax` 0.2.9 imports a module of Optax that 0.2.8 has not, and uses nothing of it;
  an empty one stands in. Its updates need implicit promotion.
- `kfac-jax` 0.0.8 unpacks two values where JAX 0.10 returns one, whenever it evaluates
  an equation of a traced program, and reads names that JAX deprecates. While it is
  traced, that one function is replaced and those warnings are not shown.

Neither is therefore in the extra `test`: their tests run where they are installed.
"""

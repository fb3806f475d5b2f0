"""The trajectory of the twins' MLP in NumPy: every layer solved as it is written down.

Backpropagation by hand; the metric of a layer is one dense matrix over its inputs and
the constant 1, which ``np.linalg`` solves with. No JAX runs.
"""

import numpy as np

RIDGE, DECAY, EVERY = 0.03, 0.95, 10  # of `lbo.Cholesky()`
SHRINKAGE = 0.1  # of `lbo.IncompleteCholesky()`, and of correlations in `Cholesky`
LAYERS = range(3)


def gradients(weights, x, labels):
    """Returns the gradients as ``[W; b]``, and the inputs, of every layer."""
    inputs = [np.c_[x, np.ones(len(x))]]
    for w in weights[:-1]:
        inputs.append(np.c_[np.tanh(inputs[-1] @ w), np.ones(len(x))])
    logits = inputs[-1] @ weights[-1]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    delta = (shares - np.eye(3)[labels]) / len(x)
    grads = []
    for rows, w in zip(reversed(inputs), reversed(weights), strict=True):
        grads.insert(0, rows.T @ delta)
        delta = (delta @ w.T * (1 - rows**2))[:, :-1]
    return grads, inputs


class Metric:
    """The metric of one layer: a moving average of ``[x; 1] [x; 1]^T``, conditioned."""

    def __init__(self, statistic):
        self.statistic, self.total, self.steps = statistic, 0.0, 0

    def update(self, rows):
        batch = rows.T @ rows / len(rows)
        self.total = DECAY * self.total + (1 - DECAY) * batch
        self.steps += 1
        second = self.total / (1 - DECAY**self.steps)
        mean = second[:-1, -1]
        if self.statistic == "gram":
            if (self.steps - 1) % EVERY:
                return
            covariance = second[:-1, :-1] - np.outer(mean, mean)
            own = np.diag(np.diag(covariance))
            covariance += SHRINKAGE * (own - covariance) + RIDGE * np.eye(len(mean))
            second[:-1, :-1] = covariance + np.outer(mean, mean)
        else:
            variance = np.diag(second)[:-1] - mean**2
            variance = (1 - SHRINKAGE) * variance + SHRINKAGE * variance.mean()
            second[:-1, :-1] = np.diag(variance) + np.outer(mean, mean)
        self.matrix = second
        self.factor = factor_of(second)


def factor_of(matrix):
    """Returns ``C = [[L, mean], [0, 1]]`` with L lower and ``C C^T = matrix``."""
    first = np.roll(matrix, 1, axis=(0, 1))  # the constant is eliminated first
    return np.roll(np.linalg.cholesky(first), -1, axis=(0, 1))


class LNB:
    """``lbo.lnb(rate, taps)``."""

    def __init__(self, rate, momentum=0.9, min_norm=1e-2, weight_decay=1e-4):
        self.rate, self.momentum, self.min_norm = rate, momentum, min_norm
        self.weight_decay, self.steps, self.average = weight_decay, 0, [0.0] * 3

    def __call__(self, weights, grads, metrics):
        self.steps += 1
        b = self.momentum
        self.average = [b * m + (1 - b) * g for m, g in zip(self.average, grads)]
        mean = [m / (1 - b**self.steps) for m in self.average]
        h = [np.linalg.solve(m.matrix, g) for m, g in zip(metrics, mean)]
        norm = np.sqrt(sum(np.vdot(a, b) for a, b in zip(h, mean)))
        norm = max(self.min_norm, norm)
        return [
            w - self.rate * (a / norm + self.weight_decay * w)
            for w, a in zip(weights, h)
        ]


class WhitenedAdam:
    """``lbo.whiten(optax.adam(rate), taps)``."""

    def __init__(self, rate, b1=0.9, b2=0.999, eps=1e-8):
        self.rate, self.b1, self.b2, self.eps = rate, b1, b2, eps
        self.steps, self.first, self.second = 0, [0.0] * 3, [0.0] * 3

    def __call__(self, weights, grads, metrics):
        self.steps += 1
        new = []
        for i in LAYERS:
            factor = metrics[i].factor
            g = np.linalg.solve(factor, grads[i])
            self.first[i] = self.b1 * self.first[i] + (1 - self.b1) * g
            self.second[i] = self.b2 * self.second[i] + (1 - self.b2) * g**2
            first = self.first[i] / (1 - self.b1**self.steps)
            second = self.second[i] / (1 - self.b2**self.steps)
            step = self.rate * first / (np.sqrt(second) + self.eps)
            new.append(weights[i] - np.linalg.solve(factor.T, step))
        return new


class Polar:
    """``lbo.polar(rate, taps)``: kernels by singular vectors of a moving average."""

    def __init__(self, rate, momentum=0.9, decay=0.9, every=5, damping=1e-6):
        self.rate, self.momentum, self.decay = rate, momentum, decay
        self.every, self.damping, self.steps = every, damping, 0
        self.average, self.gram, self.root = [0.0] * 3, [0.0] * 3, [None] * 3
        self.first, self.second = [0.0] * 3, [0.0] * 3

    def __call__(self, weights, grads, metrics):
        self.steps += 1
        new = []
        for i in LAYERS:
            factor = metrics[i].factor
            g = np.linalg.solve(factor, grads[i])
            step = np.r_[self.kernel(i, g[:-1]), self.bias(i, g[-1])[None]]
            new.append(weights[i] - self.rate * np.linalg.solve(factor.T, step))
        return new

    def kernel(self, i, g):
        b = self.momentum
        self.average[i] = b * self.average[i] + (1 - b) * g
        ahead = b * self.average[i] + (1 - b) * g
        unit, tall = ahead / np.linalg.norm(ahead), g.shape[0] >= g.shape[1]
        if (self.steps - 1) % self.every == 0:
            gram = unit.T @ unit if tall else unit @ unit.T
            self.gram[i] = self.decay * self.gram[i] + (1 - self.decay) * gram
            times = (self.steps - 1) // self.every + 1
            u, s, _ = np.linalg.svd(self.gram[i] / (1 - self.decay**times))
            self.root[i] = u @ np.diag((s + self.damping) ** -0.5) @ u.T
        factor = unit @ self.root[i] if tall else self.root[i] @ unit
        factor *= min(1, np.sqrt(min(g.shape)) / np.linalg.norm(factor))
        return 0.2 * np.sqrt(max(g.shape)) * factor

    def bias(self, i, g):
        self.first[i] = 0.9 * self.first[i] + 0.1 * g
        self.second[i] = 0.999 * self.second[i] + 0.001 * g**2
        first = self.first[i] / (1 - 0.9**self.steps)
        second = self.second[i] / (1 - 0.999**self.steps)
        return first / (np.sqrt(second) + 1e-8)


def train(common, batches, statistic, optimizer):
    """Returns the common weights after a step for every batch.

    Args:
      common: the initial ones.
      batches: inputs and labels of every step.
      statistic: ``"gram"`` or ``"moments"``.
      optimizer: maps weights, gradients and metrics to weights.
    """
    weights = [np.r_[common[f"{i}.w"], common[f"{i}.b"][None]] for i in LAYERS]
    metrics = [Metric(statistic) for _ in LAYERS]
    for x, labels in batches:
        grads, inputs = gradients(weights, x, labels)
        for metric, rows in zip(metrics, inputs, strict=True):
            metric.update(rows)
        weights = optimizer(weights, grads, metrics)
    new = {f"{i}.w": weights[i][:-1] for i in LAYERS}
    return new | {f"{i}.b": weights[i][-1] for i in LAYERS}

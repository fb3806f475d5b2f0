"""Independent NumPy references for ILLS: explicit designs and `lstsq`, no sums."""

import itertools

import numpy as np

# Direct solves in float64 agree with `lstsq` to this.
F64 = 1e-10


def random_problem(seed, sizes, n=60, outputs_scale=1.0):
    """Weights as [(kernel, bias), ...], inputs and targets, all float64."""
    rng = np.random.default_rng(seed)
    params = [
        (rng.normal(size=(a, b)) / np.sqrt(a), rng.normal(size=b) / np.sqrt(a))
        for a, b in itertools.pairwise(sizes)
    ]
    x = rng.normal(size=(n, sizes[0]))
    y = outputs_scale * rng.normal(size=(n, sizes[-1]))
    return params, x, y


def augmented(params):
    return [np.vstack([w, b]) for w, b in params]


def with_one(x):
    return np.hstack([x, np.ones((len(x), 1))])


def forward(layers, x):
    """Inputs of each layer, pre-activations of each layer (tanh hidden)."""
    inputs, zs, a = [], [], x
    for i, w in enumerate(layers):
        inputs.append(with_one(a))
        zs.append(inputs[-1] @ w)
        a = np.tanh(zs[-1]) if i < len(layers) - 1 else zs[-1]
    return inputs, zs


def output_jacobians(layers, x):
    """d out / d z by finite chain, one [sample, output, unit] array a hidden layer."""
    _, zs = forward(layers, x)
    result = []
    for level in range(len(layers) - 1):
        j = np.stack([np.diag(1 - np.tanh(z) ** 2) for z in zs[level]])
        for above in range(level + 1, len(layers)):
            j = np.einsum("nio,ij->njo", j, layers[above][:-1])
            if above < len(layers) - 1:
                j = j * (1 - np.tanh(zs[above]) ** 2)[:, :, None]
        result.append(j)
    return result


def lstsq_weighted(design, target, weights, ridge=0.0):
    """min sum w (target - design v)^2 + ridge |v|^2, by `lstsq` on stacked rows."""
    root = np.sqrt(weights)[:, None]
    rows = [root * design, np.sqrt(ridge) * np.eye(design.shape[1])]
    rhs = np.concatenate([root[:, 0] * target, np.zeros(design.shape[1])])
    return np.linalg.lstsq(np.vstack(rows), rhs, rcond=None)[0]


def weighted_directions(layers, x, y, omega, ridge):
    """Step 1: per hidden layer and unit, regression of t_ij with weights c_ij."""
    inputs, zs = forward(layers, x)
    residual = y - zs[-1]
    directions = []
    for level, j in enumerate(output_jacobians(layers, x)):
        size = np.abs(j)
        c = np.einsum("ik,ikj,ik->ij", omega, size, size.sum(axis=2))
        t = np.einsum("ikj,ik->ij", j, omega * residual) / c
        columns = []
        for unit in range(j.shape[2]):
            diagonal = c[:, unit] @ (inputs[level] ** 2)
            columns.append(
                lstsq_weighted(
                    inputs[level], t[:, unit], c[:, unit], ridge * diagonal.mean()
                )
            )
        directions.append(np.stack(columns, axis=1))
    return directions


def refit(layers, x, y, omega, output_ridge):
    """Step 3: the last layer, output by output."""
    inputs, _ = forward(layers, x)
    design = inputs[-1]
    penalty = np.sqrt(output_ridge) * np.eye(design.shape[1])
    penalty[-1] = 0  # The bias is free.
    columns = []
    for k in range(y.shape[1]):
        root = np.sqrt(omega[:, k])[:, None]
        rows = np.vstack([root * design, penalty])
        rhs = np.concatenate([root[:, 0] * y[:, k], np.zeros(len(penalty))])
        columns.append(np.linalg.lstsq(rows, rhs, rcond=None)[0])
    return np.stack(columns, axis=1)


def combination(layers, x, y, omega, effects, damping, output_ridge):
    """Step 2 by explicit projection: residual on effects, last layer eliminated.

    `effects` is [sample, output, direction]. All outputs are stacked into one tall
    regression whose last-layer block is a Kronecker product.
    """
    inputs, zs = forward(layers, x)
    design = inputs[-1]
    n, k, p = effects.shape
    width = design.shape[1]
    last = np.einsum("ni,kl->nkil", design, np.eye(k)).reshape(n * k, width * k)
    root = np.sqrt(omega).reshape(n * k, 1)
    free = np.eye(width)
    free[-1] = 0
    penalty = np.sqrt(output_ridge) * np.kron(free, np.eye(k))
    design_all = np.vstack([root * last, penalty])
    tall = np.vstack([root * effects.reshape(n * k, p), np.zeros((len(penalty), p))])
    residual = np.concatenate(
        [
            root[:, 0] * (y - zs[-1]).reshape(n * k),
            -penalty @ layers[-1].reshape(-1),
        ]
    )
    tall = tall - design_all @ np.linalg.lstsq(design_all, tall, rcond=None)[0]
    residual = (
        residual - design_all @ np.linalg.lstsq(design_all, residual, rcond=None)[0]
    )
    norm = np.linalg.norm(tall, axis=0)
    unit = tall / norm
    stacked = np.vstack([unit, np.sqrt(damping) * np.eye(p)])
    rhs = np.concatenate([residual, np.zeros(p)])
    return np.linalg.lstsq(stacked, rhs, rcond=None)[0] / norm


def published_iteration(layers, x, t, damping, ridge, margin, relaxation):
    """One sweep of the published method, then the last layer; plain equations."""
    inputs, zs = forward(layers, x)
    layers = [w.copy() for w in layers]
    residual = t - zs[-1]
    for level in range(len(layers) - 2, -1, -1):
        w = layers[level + 1][:-1]
        gram = w.T @ w
        gram = gram + damping * np.mean(np.diag(gram)) * np.eye(len(gram))
        ideal = np.tanh(zs[level]) + residual @ np.linalg.inv(gram) @ w.T
        z_star = np.arctanh(np.clip(ideal, -1 + margin, 1 - margin))
        design = inputs[level]
        weights = np.full(len(x), 1.0 / t.size)
        diagonal = weights @ design**2
        fitted = np.stack(
            [
                lstsq_weighted(design, column, weights, ridge * diagonal.mean())
                for column in z_star.T
            ],
            axis=1,
        )
        layers[level] = layers[level] + relaxation * (fitted - layers[level])
        residual = z_star - design @ layers[level]
    layers[-1] = refit(layers, x, t, np.full(t.shape, 1.0 / t.size), 0.0)
    return layers

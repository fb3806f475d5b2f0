"""Hand-written JAX: products of every kind, parameters in lists, tuples and dicts."""

import jax
import jax.numpy as jnp

from tests.frameworks import twin
from tests.frameworks.twin import EPSILON, HEADS, SHAPES, Twin


def _zeros(model: str):
    shapes = SHAPES[model]
    return {name: jnp.zeros(shape, jnp.float64) for name, shape in shapes.items()}


def mlp() -> Twin:
    """A list of pairs, and three ways to multiply."""
    zeros = _zeros("mlp")

    def forward(params, x):
        (w, b), hidden, (v, c) = params
        h = jnp.tanh(x @ w + b)
        h = jnp.einsum("nd,do->no", h, hidden[0]) + hidden[1]
        dimensions = (((1,), (0,)), ((), ()))
        return jax.lax.dot_general(jnp.tanh(h), v, dimensions) + c

    params = [(zeros[f"{i}.w"], zeros[f"{i}.b"]) for i in range(3)]
    table = {f"{i}.{j}": f"{i}.{name}" for i in range(3) for j, name in enumerate("wb")}
    return twin.make("mlp", forward, params, table)


def cnn() -> Twin:
    """Convolutions by ``lax``, flat names."""

    def forward(params, x):
        def conv(x, name, **options):
            y = jax.lax.conv_general_dilated(
                x,
                params[f"{name}.w"],
                padding=((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                **options,
            )
            return jnp.tanh(y + params[f"{name}.b"])

        h = conv(x, "strided", window_strides=(2, 2))
        h = conv(h, "grouped", window_strides=(1, 1), feature_group_count=2)
        return h.mean((1, 2)) @ params["out.w"] + params["out.b"]

    return twin.make(
        "cnn", forward, _zeros("cnn"), {name: name for name in SHAPES["cnn"]}
    )


def gru() -> Twin:
    """A loop over time; the gates of one kernel are sliced apart."""
    zeros = _zeros("gru")

    def forward(params, x):
        w, b = params["input"]

        def step(h, x):
            of_x = jnp.split(x @ w + b, 3, axis=-1)
            of_h = jnp.split(h @ params["hidden"], 3, axis=-1)
            reset, update = (jax.nn.sigmoid(of_x[i] + of_h[i]) for i in (0, 1))
            new = jnp.tanh(of_x[2] + reset * of_h[2])
            return (1.0 - update) * new + update * h, None

        start = jnp.zeros((x.shape[0], params["hidden"].shape[0]), x.dtype)
        h, _ = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))
        v, c = params["out"]
        return h @ v + c

    params = {
        "input": (zeros["input.w"], zeros["input.b"]),
        "hidden": zeros["hidden.w"],
        "out": (zeros["out.w"], zeros["out.b"]),
    }
    table = {"hidden": "hidden.w"}
    for name in ("input", "out"):
        table |= {f"{name}.0": f"{name}.w", f"{name}.1": f"{name}.b"}
    return twin.make("gru", forward, params, table)


def _norm(x, scale, offset):
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(
        jnp.square(x).mean(-1, keepdims=True) + EPSILON
    ) * scale + (offset)


def transformer() -> Twin:
    """Heads are an axis of attention's kernels, and the blocks a list."""
    zeros = _zeros("transformer")

    def pair(name, *shape):
        w, b = zeros[f"{name}.w"], zeros[f"{name}.b"]
        return {"w": w.reshape(shape or w.shape), "b": b.reshape(shape[1:] or b.shape)}

    def attend(block, x):
        def heads(name):
            layer = block[name]
            return jnp.einsum("btd,dhk->bthk", x, layer["w"]) + layer["b"]

        query, key, value = map(heads, ("query", "key", "value"))
        scores = jnp.einsum("bthk,bshk->bhts", query, key) / query.shape[-1] ** 0.5
        mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        shares = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        mixed = jnp.einsum("bhts,bshk->bthk", shares, value)
        return (
            jnp.einsum("bthk,hkd->btd", mixed, block["merge"]["w"])
            + (block["merge"]["b"])
        )

    def forward(params, tokens):
        x = params["embed"][tokens]
        for block in params["blocks"]:
            x = x + attend(block, _norm(x, *block["before"]))
            h = _norm(x, *block["between"])
            h = jnp.tanh(h @ block["up"]["w"] + block["up"]["b"])
            x = x + h @ block["down"]["w"] + block["down"]["b"]
        return _norm(x, *params["after"]) @ params["out"]["w"] + params["out"]["b"]

    norms = ("before", "between", "after")
    norm = {n: (zeros[f"{n}.scale"], zeros[f"{n}.offset"]) for n in norms}
    block = {name: pair(name, 8, HEADS, 4) for name in ("query", "key", "value")}
    block["merge"] = {"w": zeros["merge.w"].reshape(HEADS, 4, 8), "b": zeros["merge.b"]}
    block |= {"up": pair("up"), "down": pair("down")}
    block |= {"before": norm["before"], "between": norm["between"]}
    params = {
        "embed": zeros["embed.w"],
        "blocks": [block],
        "after": norm["after"],
        "out": pair("out"),
    }
    table = {"embed": "embed.w", "out.w": "out.w", "out.b": "out.b"}
    for name in ("query", "key", "value", "merge", "up", "down"):
        table |= {f"blocks.0.{name}.{x}": f"{name}.{x}" for x in "wb"}
    for name, where in zip(norms, ("blocks.0.", "blocks.0.", "")):
        table[f"{where}{name}.0"] = f"{name}.scale"
        table[f"{where}{name}.1"] = f"{name}.offset"
    return twin.make("transformer", forward, params, table)

"""Records of trials that never ran: curves by hand, so that figures are known."""

import math


def curve(losses, seconds=1.0):
    """A curve of both losses, a point every ten steps of so many seconds each."""
    points = len(losses)
    return {
        "step": [10.0 * i for i in range(points)],
        "seconds": [10.0 * i * seconds for i in range(points)],
        "train_loss": [value / 2 for value in losses],
        "test_loss": list(losses),
    }


def entry(label, rate, curves, tried=None, tapped=False):
    tried = {rate: curves[0]["test_loss"][-1]} if tried is None and curves else tried
    return {
        "label": label,
        "code": f"{label.lower()}({{rate}})",
        "tapped": tapped,
        "centre": rate,
        "rate": rate,
        "edge": False,
        "compile_seconds": 2.0 if tapped else 1.0,
        "state_bytes": 10,
        "step_bytes": 150 if tapped else 100,
        "rungs": [{"steps": 10, "losses": tried or {}}],
        "curves": curves,
    }


def record(entries, bar=math.inf, conditions=None, **changes):
    """A record whose baseline is the first of the entries."""
    return {
        "task": "mine",
        "target": "test_loss",
        "baseline": next(iter(entries)),
        "minutes": 10.0,
        "elapsed_seconds": 540.0,
        "interrupted": False,
        "steps": 40,
        "rung_steps": [5, 10],
        "seeds": list(range(1, 1 + max(len(e["curves"]) for e in entries.values()))),
        "start": {"train_loss": 4.0, "test_loss": 8.0},
        "bar": bar,
        "entries": entries,
        "left_out": {},
        "conditions": conditions or {},
        "layers": "path  kind",
        "change": "+taps = linen.taps(model, x)\n+tx = {tx}",
        "versions": {"jax": "1.2.3"},
        "device": "cpu",
        "cores": 2,
    } | changes


SLOW, FAST, LOW = [8.0, 6, 4, 3, 2], [8.0, 2, 1.5, 1.4, 1.3], [8.0, 5, 3, 1, 0.5]


def three(losses, seconds=1.0):
    """The same curve on three seeds."""
    return [curve(losses, seconds) for _ in range(3)]


def worth_it():
    """Ours is ahead of the user's own, and of the best without statistics."""
    return record(
        {
            "own": entry("yours", 1e-3, three(SLOW), {1e-3: 3.0, 1e-2: 1.0, 0.1: 9.0}),
            "adam": entry("Adam", 1e-2, three([8.0, 5, 3, 2, 1.5])),
            "polar": entry(
                "polar",
                1e-2,
                three(FAST, 1.2),
                {1e-3: 0.5, 1e-2: 0.4, 0.1: math.inf},
                tapped=True,
            ),
        },
        bar=1.7,
        conditions={"a": (1e4, 12.0), "b/c": (3e2, 4.0)},
    )

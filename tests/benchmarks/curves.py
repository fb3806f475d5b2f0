"""Synthetic races."""

from benchmarks.optimizers import OPTIMIZERS


def curves(losses, seconds, every=10):
    steps = [float(every * i) for i in range(len(losses))]
    return {
        "step": steps,
        "seconds": list(seconds),
        "train_loss": list(losses),
        "test_loss": [2 * loss for loss in losses],
    }


def result_of(*others, names=("adam", "muon", "lnb", "whiten"), **facts):
    """A result with a synthetic baseline, whose best is 1 after 30 steps, 3 s."""
    runs = [curves([8.0, 4.0, 2.0, 1.0, 1.5], [0, 1, 2, 3, 4]), *others]
    return {
        "facts": {
            "versions": {"python": "3.11.7", "jax": "0.10.2", "jaxlib": "0.10.2"},
            "processor": "a processor",
            "cores": 2,
            "device": "cpu",
        },
        "job": "whiten",
        "task": "gru",
        "title": "A task",
        "target": "train_loss",
        "steps": 40,
        "batch_size": 32,
        "seeds": 1,
        "optimizers": {
            name: {
                "label": OPTIMIZERS[name].label,
                "learning_rate": 0.1,
                "lowest": 0.25,
                "edge": False,
                "tuning": {"0.1": {"best": 0.25, "steps": 10.0}},
                "temporary_bytes": 100,
                "curves": [run],
            }
            for name, run in zip(names, runs, strict=False)
        },
        **facts,
    }

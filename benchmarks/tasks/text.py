"""Character-level language models on the standard library's own source.

The text is the same wherever the Python version is the same, and needs no
download. The first 90 % train, the last 10 % validate.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from benchmarks.tasks._models import GRU, Transformer
from benchmarks.tasks._task import (
    COMPARED,
    Task,
    cross_entropy,
    on_device,
    supervised,
    task,
)

MODULES = (
    *("argparse", "ast", "_pydecimal", "typing", "inspect", "doctest", "difflib"),
    *("subprocess", "pickle", "optparse", "mailbox", "threading", "tarfile", "pdb"),
    *("turtle", "smtplib"),
)
VOCABULARY = 96  # newline and the 95 printable ASCII characters


@task("defaults", *COMPARED)
def transformer() -> Task:
    """Two blocks, 64 wide: small enough to tune on two cores."""
    model = Transformer(VOCABULARY, width=64, blocks=2)
    return _language_model("Transformer, 64 wide", model, batch_size=16, steps=400)


@task("step_time", "memory")
def transformer_128() -> Task:
    """Two blocks, 128 wide, 4,096 tokens a step: for step times."""
    model = Transformer(VOCABULARY, width=128, blocks=2)
    return _language_model("Transformer, 128 wide", model, batch_size=64, steps=400)


@task("defaults", *COMPARED)
def gru() -> Task:
    """One gated recurrent layer, 128 wide, unrolled over 64 characters."""
    model = GRU(VOCABULARY, embedding=64, width=128)
    return _language_model("GRU, 128 wide", model, batch_size=32, steps=400)


def corpus() -> np.ndarray:
    """The source of `MODULES` as integers below `VOCABULARY`.

    Raises:
        FileNotFoundError: when Python was installed without its library's source.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    missing = [name for name in MODULES if not (library / f"{name}.py").is_file()]
    if missing:
        raise FileNotFoundError(
            f"The text tasks read the standard library's source; {missing} is not "
            f"in {library}. Use a Python that ships its .py files."
        )
    source = b"".join((library / f"{name}.py").read_bytes() for name in MODULES)
    codes = np.frombuffer(source, np.uint8)
    codes = codes[(codes == ord("\n")) | ((codes >= 32) & (codes < 127))]
    return np.where(codes == ord("\n"), 0, codes.astype(np.int32) - 31).astype(np.int32)


def windows(codes: np.ndarray, length: int) -> dict[str, jax.Array]:
    """Cut into pieces of `length`; the target is the next character."""
    count = (len(codes) - 1) // length
    x = codes[: count * length].reshape(count, length)
    y = codes[1 : count * length + 1].reshape(count, length)
    return on_device(x=x, y=y)


def _language_model(title: str, model: nn.Module, batch_size: int, steps: int) -> Task:
    codes = corpus()
    cut = len(codes) * 9 // 10
    loss, metrics = supervised(model, cross_entropy, accuracy=True)
    return Task(
        title=title,
        model=model,
        train=windows(codes[:cut], length=64),
        test=windows(codes[cut:], length=64),
        loss=loss,
        metrics=metrics,
        batch_size=batch_size,
        steps=steps,
        every=20,
        evaluated=128,
        target="test_loss",
    )

"""Character-level language models on the standard library's own source.

The text is the same wherever the Python version is the same, and needs no
download. Tasks named after another text read that from a file, if one is given.
The first 90 % train, the last 10 % validate.
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
LENGTH = 64  # characters in a window
SHORTEST = 20 * LENGTH  # a batch of 12 to train on, a window to validate on


@task("defaults", *COMPARED)
def transformer() -> Task:
    """Two blocks, 64 wide: small enough to tune on two cores."""
    model = Transformer(VOCABULARY, width=64, blocks=2)
    return _language_model(
        "Transformer, 64 wide", model, corpus(), batch_size=16, steps=400
    )


@task("step_time", "memory")
def transformer_128() -> Task:
    """Two blocks, 128 wide, 4,096 tokens a step: for step times."""
    model = Transformer(VOCABULARY, width=128, blocks=2)
    return _language_model(
        "Transformer, 128 wide", model, corpus(), batch_size=64, steps=400
    )


@task("defaults", *COMPARED)
def gru() -> Task:
    """One gated recurrent layer, 128 wide, unrolled over 64 characters."""
    model = GRU(VOCABULARY, embedding=64, width=128)
    return _language_model("GRU, 128 wide", model, corpus(), batch_size=32, steps=400)


@task(*COMPARED, reads_text=True)
def shakespeare(text: str | None = None) -> Task:
    """nanoGPT's recipe for a CPU, on a text of one's own: 4 blocks, 128 wide.

    Karpathy's file is `input.txt` of char-rnn's Tiny Shakespeare, 1.1 MB.
    """
    return _nano(text, steps=600)


@task(reads_text=True)
def shakespeare_full(text: str | None = None) -> Task:
    """The same, for as many steps as the recipe has."""
    return _nano(text, steps=2000)


def _nano(text: str | None, steps: int) -> Task:
    if text is None:
        codes, vocabulary, name = corpus(), VOCABULARY, "the standard library"
    else:
        codes, vocabulary = read(Path(text))
        name = Path(text).name
    model = Transformer(vocabulary, width=128, blocks=4, heads=4)
    title = f"Transformer, 4 blocks, 128 wide, on {name}"
    return _language_model(title, model, codes, batch_size=12, steps=steps)


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


def read(path: Path) -> tuple[np.ndarray, int]:
    """A text as integers, and the number of its different characters.

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: when the text is too short to train and validate on.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`--text` must name a file, got '{path}'.")
    characters = np.array(list(path.read_text(encoding="utf-8")))
    if len(characters) < SHORTEST:
        raise ValueError(
            f"`--text` must name a text of at least {SHORTEST} characters, got "
            f"{len(characters)} in '{path}'. Take a longer one."
        )
    # Sorted by code point, without repetition.
    vocabulary, codes = np.unique(characters, return_inverse=True)
    return codes.astype(np.int32), len(vocabulary)


def windows(codes: np.ndarray, length: int) -> dict[str, jax.Array]:
    """Cut into pieces of `length`; the target is the next character."""
    count = (len(codes) - 1) // length
    x = codes[: count * length].reshape(count, length)
    y = codes[1 : count * length + 1].reshape(count, length)
    return on_device(x=x, y=y)


def _language_model(
    title: str, model: nn.Module, codes: np.ndarray, batch_size: int, steps: int
) -> Task:
    cut = len(codes) * 9 // 10
    loss, metrics = supervised(model, cross_entropy, accuracy=True)
    return Task(
        title=title,
        model=model,
        train=windows(codes[:cut], LENGTH),
        test=windows(codes[cut:], LENGTH),
        loss=loss,
        metrics=metrics,
        batch_size=batch_size,
        steps=steps,
        every=20,
        evaluated=128,
        target="test_loss",
    )

"""Training that is killed and started again: a program, and who kills it.

See `python -m benchmarks.faults.interrupted --help`. It saves every few steps, goes on
from the last save that is whole, and prints a digest of the bits it ends with. Where it
is to die it sends itself SIGKILL, which no handler sees: between steps, or in a save.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from benchmarks.faults.training import COMPETITORS, Batches, batches, initial, stepper

NAMES = ("lnb", "lnb_moments", "whiten", "whiten_moments")
WAYS = ("flax", "orbax")
EVERY = 3  # steps from save to save; factors are refreshed every 10
ROOT = Path(__file__).parents[2]


class Death(NamedTuple):
    """When to die: before the step is saved, or in the save, if there is one."""

    step: int
    in_save: bool


def kill() -> None:
    """Dies at once, as by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


class FlaxFile:
    """One file of msgpack, replaced as a whole."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "state.msgpack"

    def restore(self, like: Any) -> Any:
        """Returns the last state that was saved, or None."""
        if not self.path.is_file():
            return None
        return serialization.from_bytes(like, self.path.read_bytes())

    def save(self, step: int, state: Any, dies: bool) -> None:
        """Saves a state; dies halfway if told to."""
        del step
        content = serialization.to_bytes(state)
        half = len(content) // 2
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(content[:half])
            file.flush()
            if dies:
                kill()
            file.write(content[half:])
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def close(self) -> None:
        """Nothing is left to be done."""


class Orbax:
    """Orbax's manager: a folder a step, written in the background."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def restore(self, like: Any) -> Any:
        """Returns the last state whose save was finished, or None."""
        if self.manager.latest_step() is None:
            return None
        return self.manager.restore(
            self.manager.latest_step(), args=ocp.args.StandardRestore(like)
        )

    def save(self, step: int, state: Any, dies: bool) -> None:
        """Saves a state; dies as soon as there is an unfinished folder, if told to."""
        if dies:
            threading.Thread(target=self._die_in_save, daemon=True).start()
        self.manager.save(step, args=ocp.args.StandardSave(state))
        if dies:
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save."""
        self.manager.wait_until_finished()
        self.manager.close()

    def _die_in_save(self) -> None:
        while not list(self.folder.glob("*tmp*")):
            time.sleep(1e-4)
        kill()


STORES: dict[str, Callable[[Path], FlaxFile | Orbax]] = {
    "flax": FlaxFile,
    "orbax": Orbax,
}


def train(store: FlaxFile | Orbax, steps: int, death: Death | None) -> str:
    """Trains all competitors side by side from where they were; returns a digest."""
    data = batches(0)
    step, carries = _competitors()
    state = {"step": np.zeros((), np.int32), "carries": carries}
    restored = store.restore(state)
    state = state if restored is None else restored
    start = int(state["step"])
    print(f"from {start}", flush=True)
    for i in range(start, steps):
        carries = step(state["carries"], Batches(*(each[i] for each in data)))
        state = {"step": np.asarray(i + 1, np.int32), "carries": carries}
        dies = death is not None and i + 1 >= death.step
        if dies and death is not None and not death.in_save:
            kill()
        if (i + 1) % EVERY == 0:
            store.save(i + 1, jax.device_get(state), dies)
    store.close()
    return digest(state)


def _competitors() -> tuple[Callable[..., Any], dict[str, Any]]:
    """One compiled step for all competitors, and where they start."""
    made = {name: stepper(COMPETITORS[name]) for name in NAMES}
    params = initial()
    # A list: what Orbax restores of a tuple is one.
    carries = {name: [params, tx.init(params)] for name, (tx, _) in made.items()}

    @jax.jit
    def step(carries: Any, batch: Batches) -> Any:
        new = {name: made[name][1](carry, batch) for name, carry in carries.items()}
        return {name: list(carry) for name, (carry, _) in new.items()}

    return step, carries


def digest(tree: Any) -> str:
    """A digest of every bit of every array."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


class Outcome(NamedTuple):
    """What came of a run that was killed again and again."""

    digest: str
    starts: list[int]  # the step that every start went on from
    deaths: list[Death]


def interrupted(folder: Path, way: str, steps: int, kills: int, seed: int) -> Outcome:
    """Runs the program, kills it at random steps, and starts it until it is done.

    Raises:
        RuntimeError: when a program that was to be killed was not, or failed.
    """
    rng, deaths, starts = random.Random(seed), [], []
    at = sorted(rng.sample(range(2, steps), kills))
    for number, step in enumerate(at):
        # Every other one in a save; the first of all before there is any.
        deaths.append(Death(step, in_save=number % 2 == 1))
    printed = ""
    for death in [*deaths, None]:
        code, printed = launch(folder, way, steps, death)
        if code != (0 if death is None else -signal.SIGKILL):
            raise RuntimeError(f"ended with {code} where {death} was due: {printed}")
        starts.append(int(printed.split()[1]))
    return Outcome(printed.split()[-1], starts, deaths)


def launch(
    folder: Path, way: str, steps: int, death: Death | None = None
) -> tuple[int, str]:
    """Starts the program once; returns its exit status and what it printed."""
    options = ["--folder", str(folder), "--way", way, "--steps", str(steps)]
    if death is not None:
        options += ["--die-at", str(death.step)] + ["--in-save"] * death.in_save
    command = [sys.executable, "-m", "benchmarks.faults.interrupted", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout or done.stderr


def main(argv: Sequence[str]) -> None:
    """Trains, dies, or prints the digest."""
    parser = argparse.ArgumentParser("python -m benchmarks.faults.interrupted")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--in-save", action="store_true")
    args = parser.parse_args(argv)
    death = None if args.die_at is None else Death(args.die_at, args.in_save)
    print(train(STORES[args.way](args.folder), args.steps, death), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

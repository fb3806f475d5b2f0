"""The page of several devices is executed, in a process that has so many."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sharding.host import environment

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "sharded_transformer.md").read_text()
DEVICES = 8
ONE_DEVICE = """
mesh = use(1)
alone = jax.jit(init, out_shardings=layout(mesh, shapes))(jax.random.key(0))
alone = train(mesh, alone, tx.init(alone), range(60))[-1]
np.testing.assert_allclose(losses + resumed, alone, rtol=1e-3)
for leaf in jax.tree.leaves((params, opt_state)):
    assert len(leaf.sharding.device_set) == 4
print("as one device")
"""


def script(page):
    """Returns the Python blocks of a page, on their lines: errors are found there."""
    parts = re.split(r"^```python\n(.*?)^```$", page, flags=re.M | re.S)
    return "".join(
        part if number % 2 else "\n" * (part.count("\n") + 1)
        for number, part in enumerate(parts)
    )


def environment_of_the_page():
    """Returns what the page says to set, and what tests set."""
    (commands,) = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)
    flags = re.findall(r"--xla_[\w=]+", commands)
    (threads,) = re.findall(r"NPROC=(\d+)", commands)
    own = environment(DEVICES, bits=32)
    assert flags[0] == own["XLA_FLAGS"].split()[-1]
    assert threads == own["NPROC"]
    flags = " ".join([own["XLA_FLAGS"], *flags[1:]])
    return own | {"XLA_FLAGS": flags, "NPROC": threads}


@pytest.mark.slow
def test_the_page_trains_and_resumes_as_one_device_does():
    run = subprocess.run(
        [sys.executable, "-"],
        input=script(PAGE) + ONE_DEVICE,
        env=environment_of_the_page(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    said = run.stdout.splitlines()
    assert said[-1] == "as one device"
    (printed,) = re.findall(r"<!-- printed -->\n```text\n(.*?)^```", PAGE, re.M | re.S)
    assert said[: len(printed.splitlines())] == printed.splitlines()

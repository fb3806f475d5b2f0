"""The notebooks run from top to bottom and are committed with their outputs."""

import json
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


class RunningInterpreter(AsyncKernelManager):
    """A kernel in this very environment, whichever kernels are installed."""

    @property
    def kernel_spec(self):
        command = [
            sys.executable,
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
        ]
        return KernelSpec(
            argv=command,
            language="python",
            display_name="Python",
            env={"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""},
        )


def outputs(notebook, ignore=()):
    """Returns the MIME types and streams that each code cell puts out."""
    return [
        [
            sorted(out.get("data", {out.get("name"): None}))
            for out in cell.outputs
            if out.get("name") not in ignore
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_there_are_notebooks():
    names = [path.name for path in NOTEBOOKS]
    assert names == [
        "ills_diagnostics.ipynb",
        "quickstart.ipynb",
        "transformer.ipynb",
        "trial.ipynb",
        "whitening_seen.ipynb",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_puts_out_what_is_committed(path):
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(
        fresh,
        timeout=300,
        kernel_manager_class=RunningInterpreter,
        resources={"metadata": {"path": str(ROOT)}},
    ).execute()
    # A fresh installation may remark on stderr, e.g. that fonts are being cached.
    assert outputs(fresh, ignore=["stderr"]) == outputs(committed)
    if path.stem == "quickstart":
        # The table of taps holds no measured number: the same to the letter.
        tables = [_text(notebook, "statistics: ") for notebook in (fresh, committed)]
        assert tables[0] == tables[1]


def _text(notebook, part):
    """Returns the one plain-text result that contains `part`."""
    texts = [
        out.data["text/plain"]
        for cell in notebook.cells
        for out in cell.get("outputs", [])
        if "text/plain" in out.get("data", {})
    ]
    (found,) = [text for text in texts if part in text]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_with_pictures_and_no_trace_of_a_machine(path):
    text = path.read_text()
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    pictures = [kinds for cell in outputs(notebook) for kinds in cell]
    assert any("image/png" in kinds for kinds in pictures)
    assert not any("stderr" in kinds for kinds in pictures)
    assert "/tmp/" not in text
    assert "/home/" not in text
    assert "/root/" not in text
    assert json.loads(text)["metadata"]["kernelspec"]["name"] == "python3"

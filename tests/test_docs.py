"""The guides are executed: every Python block of a file, in order."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
INDEX = ROOT / "docs" / "index.md"
GUIDES = [path for path in PAGES if path.parent == INDEX.parent and path != INDEX]
# The first needs eight devices: see `test_docs_sharded.py`. The others are tables that
# a command makes: see `benchmarks/test_evidence.py`.
NOT_RUN = ("sharded_transformer", "evidence_lnb", "evidence_ills")
ON_ONE_DEVICE = [path for path in GUIDES if path.stem not in NOT_RUN]

# User code is not held to strict promotion, as in the README.
pytestmark = [pytest.mark.slow, pytest.mark.lenient("guides are user code")]


def test_there_is_a_guide_to_ills():
    assert "ills.md" in [path.name for path in GUIDES]


@pytest.mark.parametrize("path", ON_ONE_DEVICE, ids=lambda path: path.stem)
def test_blocks_run_in_order(path, capsys):
    text = path.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S))
    assert blocks
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            # Line numbers of an error are those of the guide.
            above = "\n" * text[: block.start(1)].count("\n")
            exec(compile(above + block[1], str(path), "exec"), names)
    for table in re.findall(r"<!-- taps -->\n```text\n(.*?)\n```", text, re.S):
        assert table == str(names["taps"])
    printed = capsys.readouterr().out
    for shown in re.findall(r"<!-- printed -->\n```text\n(.*?\n)```", text, re.S):
        assert shown in printed


def test_the_index_names_every_page():
    shown = re.sub(r"^```{toctree}.*?^```$", "", INDEX.read_text(), flags=re.M | re.S)
    links = set(re.findall(r"\]\(([^)#]+)", shown))
    notebooks = [f"../notebooks/{each.name}" for each in ROOT.glob("notebooks/*.ipynb")]
    assert {*(path.name for path in GUIDES), *notebooks} <= links


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_and_files_exist(path):
    text = path.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert not [link for link in links if not (path.parent / link).exists()]

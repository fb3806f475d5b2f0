"""The site builds without a warning, has every public name, and its links lead on."""

import inspect
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

import linboost_optax as lbo
from linboost_optax import extend, ills, linen, nnx, plot, sklearn

ROOT = Path(__file__).parent.parent
MODULES = (lbo, linen, nnx, extend, ills, plot, sklearn)

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.formulas = set(), set(), 0
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links |= {found[name] for name in ("href", "src") if found.get(name)}
        self.formulas += tag == "div" and "math" in (found.get("class") or "").split()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Returns the pages of the site by path; building it fails on any warning."""
    out = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs"]
    done = subprocess.run(
        [*command, str(out)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return {path: Page(path) for path in sorted(out.rglob("*.html"))}


def public_names(module):
    names = getattr(module, "__all__", None)
    if names is not None:
        return names
    functions = vars(module).items()
    return [
        name
        for name, value in functions
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]


def anchor(module, name):
    if inspect.ismodule(getattr(module, name)):
        return f"module-{module.__name__}.{name}"
    return f"{module.__name__}.{name}"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_has_an_anchor(site, module):
    there = set().union(*(page.anchors for page in site.values()))
    names = public_names(module)
    assert names
    assert not [name for name in names if anchor(module, name) not in there]


def test_links_within_the_site_lead_somewhere(site):
    broken = []
    for path, page in site.items():
        for link in page.links:
            target, fragment = urldefrag(link)
            if urlparse(link).scheme:
                continue
            file = (path.parent / unquote(urlparse(target).path)) if target else path
            file = file.resolve()
            if not file.is_file() or (
                fragment
                and file in site
                and unquote(fragment) not in site[file].anchors
            ):
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_every_page_and_notebook_is_there(site):
    sources = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    pages = {path.relative_to(path.parents[1]).with_suffix("") for path in site}
    names = {path.relative_to(path.parents[1]).with_suffix("") for path in sources}
    assert len(names) > 20
    assert names <= pages


def test_formulas_are_formulas(site):
    (page,) = [page for path, page in site.items() if path.stem == "concepts"]
    text = (ROOT / "docs" / "concepts.md").read_text()
    assert page.formulas == text.count("\n$$\n") // 2

"""The site, by Sphinx: pages of Markdown, notebooks as they were run, docstrings.

    python -m sphinx -W docs build/site

The source folder is the repository, not `docs/`: notebooks, results and the README are
pages where they lie, and a relative link is the same one on a forge and on the site.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import linboost_optax  # noqa: E402

FOLDERS = {"docs", "notebooks", "benchmarks"}
PAGES = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"}

project = "linboost_optax"
author = "The linboost_optax authors"
project_copyright = author
version = release = linboost_optax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
nitpicky = True
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "benchmarks/RESULTS.md", *PAGES]
exclude_patterns = [
    *(each.name for each in ROOT.iterdir() if each.name not in FOLDERS | PAGES),
    "docs/_*",
    "**/.ipynb_checkpoints",
]

# Markdown as forges read it.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# Notebooks are committed with what they put out, and a test executes them.
nb_execution_mode = "off"

# Docstrings say in words what types do; signatures keep names and defaults.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
add_module_names = False
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"linboost_optax {version}"
html_additional_pages = {"index": "start.html"}
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_dark_style = "github-dark"
html_copy_source = False
html_show_sphinx = False


def setup(app):
    """Points Sphinx to the repository, whichever folder it was called with."""
    app.srcdir = type(app.srcdir)(ROOT)
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("autodoc-process-signature", _shorten)


def _skip_fields(app, what, name, obj, skip, options):
    """Leaves out fields of named tuples: their docstrings list them as attributes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def _shorten(app, what, name, obj, options, signature, returns):
    """Writes a class that is a default as code does: `Param`, not `<class '...'>`."""
    if signature:
        return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", signature), returns
    return None

"""Sphinx configuration. `sphinx-build -W --keep-going docs docs/_build` builds the site; no network is needed."""

from __future__ import annotations

import sys
import tomllib
from contextlib import chdir
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
from codeBlocks import run_python

project = "hunterFormsBS"
author = "Hunter Hogan, Phil Wang, Roman Solovyev (ZFTurbo)"
with (Path(__file__).parent.parent / "pyproject.toml").open("rb") as file:
    release = tomllib.load(file)["project"]["version"]
version = release

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"hunterFormsBS {release}"
html_copy_source = False

# Docstrings mark code by single backticks. What names something on this site becomes a link to it.
default_role = "py:obj"
# A name in full, such as hunterFormsBS.attend.Attention, must be on this site; others may lead elsewhere.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!hunterFormsBS\.).*"),
    (r"py:class", r"hunterFormsBS\.(kernels\.(seam|fft)|blocks\.recompute)\.(P|R|Method)"),
]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
numpydoc_show_class_members = False

linkcheck_timeout = 20
# These answer browsers only.
linkcheck_ignore = [r"https://doi\.org/.*", r"https://openreview\.net/.*"]


def draw_pictures(app: Sphinx) -> None:
    """Run the page about band layouts where its pictures belong."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder = Path(app.srcdir) / "_pictures"
    folder.mkdir(exist_ok=True)
    with chdir(folder):
        run_python(Path(app.srcdir) / "layouts.md")


def setup(app: Sphinx) -> None:
    """Have the pictures drawn before anything is read."""
    app.connect("builder-inited", draw_pictures)

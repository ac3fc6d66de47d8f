"""Sphinx configuration. `sphinx-build -W --keep-going docs docs/_build` builds the site; no network is needed."""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from contextlib import chdir
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

sys.path.insert(0, str(Path(__file__).parent))
from codeBlocks import run_python
from summaries import linked, with_summary

project = "hunterFormsBS"
author = "Hunter Hogan, Phil Wang, Roman Solovyev (ZFTurbo)"
with (Path(__file__).parent.parent / "pyproject.toml").open("rb") as file:
    release = tomllib.load(file)["project"]["version"]
version = release
copyright = author

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"hunterFormsBS {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["sortable.js"]
html_theme_options = {
    "source_repository": "https://github.com/hunterhogan/hunterFormsBS",
    "source_branch": "main",
    "source_directory": "docs/",
    "footer_icons": [
        {"name": "The repository", "url": "https://github.com/hunterhogan/hunterFormsBS", "html": "Repository"}
    ],
}

# Docstrings mark code by single backticks. What names something on this site becomes a link to it.
default_role = "py:obj"
# A name in full, such as hunterFormsBS.attend.Attention, must be on this site; others may lead elsewhere.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!hunterFormsBS\.).*"),
    (r"py:class", r"hunterFormsBS\.(kernels\.(seam|recompute)|operations\.fft)\.(P|R|Method)"),
]
# Messages and options stand as they are.
smartquotes = False
myst_enable_extensions = ["attrs_block", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Outputs are not to be copied.
copybutton_selector = "div:not(.highlight-output):not(.highlight-text) > div.highlight > pre"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
numpydoc_show_class_members = False
autosummary_generate = False

linkcheck_timeout = 20
# These answer browsers only.
linkcheck_ignore = [r"https://doi\.org/.*", r"https://openreview\.net/.*"]


class Shown:
    """Stands for a default, and prints as a reader wants it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def readable(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return the parameter with a default that prints by its name, or as constructors here print theirs."""
    if type(parameter) is not inspect.Parameter and parameter.default is not parameter.empty:
        return parameter.replace(default=Shown(str(parameter).rpartition(" = ")[2]))
    if callable(parameter.default) and parameter.default is not parameter.empty:
        module = getattr(parameter.default, "__module__", None) or "torch"
        return parameter.replace(default=Shown(f"{module}.{parameter.default.__name__}"))
    return parameter


def show_defaults(_app: Sphinx, method: Any, _bound_method: bool) -> None:
    """Replace the signature of a function by one whose defaults are readable."""
    function = getattr(method, "__func__", method)
    if inspect.isfunction(function):
        signature = inspect.signature(function, follow_wrapped=False)
        function.__signature__ = signature.replace(parameters=[readable(one) for one in signature.parameters.values()])


def is_left_out(_app: Sphinx, _what: str, _name: str, member: object, _skip: bool, _options: Any) -> bool | None:
    """Leave the fields of named tuples out of the lists of members: the class documents them as its parameters."""
    return True if type(member).__name__ == "_tuplegetter" else None


def draw_pictures(app: Sphinx) -> None:
    """Run the page about band layouts where its pictures belong."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder = Path(app.srcdir) / "_pictures"
    folder.mkdir(exist_ok=True)
    with chdir(folder):
        run_python(Path(app.srcdir) / "layouts.md")


def complete(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Give pages what only the site has: summaries, links to the reference, sortable tables, the changelog in full."""
    if docname.startswith("reference/"):
        source[0] = with_summary(source[0])
    elif docname == "changelog":
        source[0] = "```{include} ../CHANGELOG.md\n:relative-docs: docs/\n```\n"
    else:
        source[0] = re.sub(r"^(?=\| (Name|Preset) \|)", "{.sortable}\n", linked(source[0]), flags=re.MULTILINE)


def check_sortable(app: Sphinx, error: Exception | None) -> None:
    """Refuse a site whose catalogue has tables that are not marked for the script which sorts them, or lacks it."""
    if error is not None or app.builder.format != "html":
        return
    page = (Path(app.outdir) / "catalogue.html").read_text(encoding="utf-8")
    marked = re.findall(r'<table class="[^"]*\bsortable\b[^"]*">\s*<thead>', page)
    source = (Path(app.srcdir) / "catalogue.md").read_text(encoding="utf-8")
    expected = re.findall(r"^\| (?:Name|Preset) \|", source, re.MULTILINE)
    if len(marked) != len(expected) or not re.search(r'<script src="_static/sortable\.js[^"]*"></script>', page):
        raise ExtensionError(
            f"of {len(expected)} tables {len(marked)} are marked as sortable, or the script is missing"
        )


def setup(app: Sphinx) -> None:
    """Have the pictures drawn before anything is read, and signatures and members shown as they are meant."""
    app.connect("builder-inited", draw_pictures)
    app.connect("source-read", complete)
    app.connect("build-finished", check_sortable)
    app.connect("autodoc-before-process-signature", show_defaults)
    app.connect("autodoc-skip-member", is_left_out)

"""Sphinx: the pages of this folder, and the reference from the docstrings."""

import sys
from pathlib import Path

from snn_ext import __version__

sys.path.insert(0, str(Path(__file__).parent))  # for the extension beside this file

project = "snn_ext"
release = __version__
author = copyright = "The snn_ext developers"

extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode",
    "sphinx_copybutton", "mathml",
]  # fmt: skip
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"snn_ext {release}"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_theme_options = {"source_repository": "https://github.com/snn-ext/snn_ext/", "source_branch": "main",
                      "source_directory": "docs/"}  # fmt: skip

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # the hosts document their own methods
autodoc_typehints = "none"  # the docstrings say types and shapes
napoleon_google_docstring = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
suppress_warnings = ["myst.header"]  # tables of results begin at the level their command wrote

# What users call stands on the pages of the reference; what hosts and contributors call is left to the source.
_OF_THE_HOSTS = {
    "materialize_states", "multi_step_functional_forward", "single_step_functional_forward", "get_reset_value",
    "extra_repr", "multi_step_forward", "single_step_forward", "base_state_function", "base_sim",
}  # fmt: skip


def setup(app):
    """Leave out methods that a class takes over from its host, or has for it alone."""
    app.connect("autodoc-skip-member", _skip)


def _skip(app, what, name, member, skip, options):
    return skip or name in _OF_THE_HOSTS or _is_foreign(member)


def _is_foreign(member):
    return callable(member) and not str(getattr(member, "__module__", "snn_ext")).startswith("snn_ext")

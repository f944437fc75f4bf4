"""Sphinx: the pages of this folder, and the reference from the docstrings."""

from snn_ext import __version__

project = "snn_ext"
release = __version__
author = copyright = "The snn_ext developers"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"snn_ext {release}"

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # the hosts document their own methods
autodoc_typehints = "none"  # the docstrings say types and shapes
napoleon_google_docstring = False
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # tables of results begin at the level their command wrote


def setup(app):
    """Leave out methods that a class takes over from its host."""
    app.connect("autodoc-skip-member", lambda app, what, name, member, skip, options: skip or _is_foreign(member))


def _is_foreign(member):
    return callable(member) and not str(getattr(member, "__module__", "snn_ext")).startswith("snn_ext")

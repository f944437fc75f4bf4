"""The packages of a wheel; all else is in ``pyproject.toml``.

The recipes are at the top of a checkout, to be read and run there. In a wheel they are ``snn_ext.recipes``: a package
called ``recipes`` would clash with anybody's own.
"""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["snn_ext*"]) + [f"snn_ext.{name}" for name in find_packages(include=["recipes.*"])],
    package_dir={"snn_ext.recipes": "recipes"},
)

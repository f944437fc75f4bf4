"""The recipes, under the name that they have wherever the package is installed.

In a wheel this file is that of the recipes themselves. In a checkout they are the folder ``recipes`` at its top.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "recipes")]

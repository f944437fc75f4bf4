"""Mathematics as MathML, which browsers draw themselves: no network, no scripts, nothing to copy beside the pages."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

__all__ = ["setup"]


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer; ``html_math_renderer = "mathml"`` chooses it."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node.astext(), node))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    # An & or a line break needs an environment, as Sphinx's own renderers give it.
    source = node.astext()
    if "\\\\" in source or "&" in source:
        source = rf"\begin{{aligned}} {source} \end{{aligned}}"
    writer.body.append(f'<div class="math">{_mathml(source, node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(source: str, node: nodes.Node, **options: bool) -> str:
    try:
        return tex2mathml(source, **options)
    except (MathError, AttributeError) as error:
        logging.getLogger(__name__).warning("%s: in %r", error, source, location=node)
        return f"<code>{source}</code>"

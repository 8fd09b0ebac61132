"""Renders formulas as MathML, which browsers show without a script from the network."""

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def _inline(translator: Any, node: nodes.math) -> None:
    _render(translator, node, as_block=False)


def _block(translator: Any, node: nodes.math_block) -> None:
    _render(translator, node, as_block=True)


def _render(translator: Any, node: nodes.Element, as_block: bool) -> None:
    try:
        translator.body.append(tex2mathml(node.astext(), as_block=as_block))
    except MathError as error:
        LOGGER.warning("%s: %s", error, node.astext(), location=node)
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Registers the extension."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True}

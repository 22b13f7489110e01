"""Code blocks without the blank line at their end, which doctest needs where output ends."""

from docutils import nodes
from sphinx.application import Sphinx


def on_page(app: Sphinx, page: nodes.document) -> None:
    for block in page.findall(nodes.literal_block):
        text = block.astext().rstrip("\n")
        block[:] = [nodes.Text(text)]
        # Sphinx colours nothing whose source and text differ.
        block.rawsource = text


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", on_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

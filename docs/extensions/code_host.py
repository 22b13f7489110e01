"""Turns what reads well on a code host into what the site needs.

The pages use no directives that a host would show as text. A picture in two themes is HTML, a line
with only a link to a program stands for the program, and names of the package are plain code. The
tables of contents are in `conf.py`.
"""

import re

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import tpgm_jax

PICTURE = re.compile(
    r'<picture>\n *<source media="\(prefers-color-scheme: dark\)" srcset="(\S+)">\n'
    r' *<img alt="([^"]*)" src="(\S+)" width="(\d+)">\n</picture>'
)
IMAGE = "```{{image}} {}\n:class: only-{}\n:width: {}px\n:alt: {}\n```\n"
PROGRAM = re.compile(r"^\[\w+\.py\]\((\S+\.py)\)$", re.MULTILINE)
# Pages of the site that are files of the repository's root and of `benchmarks/`.
ELSEWHERE = {
    "../benchmarks/README.md": "benchmarks.md",
    "../CHANGELOG.md": "changelog.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../RELEASING.md": "releasing.md",
}


def on_read(app: Sphinx, name: str, source: list[str]) -> None:
    """Replaces pictures, programs and links, and appends the table of contents."""
    text = PICTURE.sub(
        lambda m: IMAGE.format(m[3], "light", m[4], m[2]) + IMAGE.format(m[1], "dark", m[4], m[2]),
        source[0],
    )
    text = PROGRAM.sub(r"```{literalinclude} \1\n:language: python\n```", text)
    if "{include}" not in text:
        for path, page in ELSEWHERE.items():
            text = text.replace(f"]({path}", f"]({page}")
    for caption, pages in app.config.contents.get(name, {}).items():
        text += "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(pages)
        text += "\n```\n"
    source[0] = text


def on_page(app: Sphinx, page: nodes.document) -> None:
    """Links `tpgm_jax.NAME` to the reference."""
    if app.env.docname == "api":
        return
    for code in list(page.findall(nodes.literal)):
        package, _, name = code.astext().partition(".")
        if package == "tpgm_jax" and name in vars(tpgm_jax) and not within_a_link(code):
            link = pending_xref(
                "", refdomain="py", reftype="obj", reftarget=code.astext(), refexplicit=True
            )
            code.replace_self(link)
            link += code


def within_a_link(node: nodes.Node) -> bool:
    parent = node.parent
    while parent is not None:
        if isinstance(parent, nodes.reference | pending_xref | nodes.title):
            return True
        parent = parent.parent
    return False


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("contents", {}, "env", dict)
    app.connect("source-read", on_read)
    app.connect("doctree-read", on_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

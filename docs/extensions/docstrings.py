"""Docstrings as they are read in `help()` and in editors, turned into what Sphinx reads.

There an indented block is an equation or code, and backticks are code; in reStructuredText the
one is a quotation whose lines run together, and the other a reference.
"""

import ast
import inspect
import re
import textwrap
from typing import Any

from sphinx.application import Sphinx

import tpgm_jax

SECTION = re.compile(r"(Args|Attributes|Examples|Raises|References|Returns):$")
CODE = re.compile(r"`([^`]+)`")


def paragraphs(lines: list[str]) -> list[list[str]]:
    """`lines` between blank ones."""
    text = "\n".join(lines).strip("\n")
    return [block.split("\n") for block in re.split(r"\n(?: *\n)+", text)]


def indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def restructured(lines: list[str]) -> list[str]:
    """A docstring of this project in reStructuredText, with its sections unchanged.

    Examples:
        >>> restructured(["Writing `d` for it, `|d|` is", "", "    |d| * 2", "", "of `ftp`."])
        ... # doctest: +NORMALIZE_WHITESPACE
        ['Writing ``d`` for it, ``|d|`` is', '', '::', '', '    |d| * 2', '',
         'of :obj:`~tpgm_jax.ftp`.', '']
    """
    found: list[str] = []
    margin, literal = 0, False
    for block in paragraphs(lines):
        first = indentation(block[0])
        if SECTION.match(block[0]):
            margin = 4
        elif first == 0:
            margin = 0
        if first - margin >= 4:
            found += [*([] if literal else [" " * margin + "::", ""]), *block, ""]
            literal = True
            continue
        literal = False
        if not block[0].lstrip().startswith(">>>"):
            block = prose("\n".join(block)).split("\n")
        found += [*block, ""]
    return found


def prose(text: str) -> str:
    """Text with its code spans marked as such."""
    parts = CODE.split(text)
    parts[1::2] = [span(part) for part in parts[1::2]]
    return "".join(parts)


def span(code: str) -> str:
    """A reference to one of our names, or else code."""
    name = code.removeprefix("tpgm_jax.")
    public = name.isidentifier() and not name.startswith("_") and hasattr(tpgm_jax, name)
    return f":obj:`~tpgm_jax.{name}`" if public and name != "tpgm_jax" else f"``{code}``"


def signature(function: Any) -> tuple[str, str]:
    """Arguments and result as the source has them, not with all aliases written out.

    Examples:
        >>> signature(indentation)
        ('(line: str)', 'int')
    """
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    return f"({ast.unparse(node.args)})", ast.unparse(node.returns) if node.returns else ""


def on_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]):
    if (getattr(obj, "__module__", None) or "").startswith("tpgm_jax") or what == "module":
        lines[:] = restructured(lines)


def on_signature(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> tuple[str, str] | None:
    if inspect.isclass(obj) and issubclass(obj, tuple):
        return f"({', '.join(getattr(obj, '_fields', ()))})", ""
    ours = inspect.isfunction(obj) and obj.__module__.startswith("tpgm_jax")
    return signature(obj) if ours else None


def setup(app: Sphinx) -> dict[str, bool]:
    # Before Napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", on_docstring, priority=100)
    app.connect("autodoc-process-signature", on_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

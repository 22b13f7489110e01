"""The API reference: all public names, as `tpgm_jax/__init__.py` groups them.

A new name gets its place from the import that makes it public, and a new public module from
being there; nothing has to be listed twice.
"""

import inspect
import pkgutil
import re
from typing import Any

from sphinx.application import Sphinx

import tpgm_jax

PAGE, MARK = "api", "<!-- all public names -->"
COMMENT = re.compile(r"# (.*)")
IMPORT = re.compile(r"from (\S+) import \w+ as (\w+)")
CONSTANT = re.compile(r"([A-Za-z]\w*)\b.*=")


def groups(source: str) -> list[tuple[str, list[str]]]:
    """Comment above a group, and the names of the group: what is called before what it returns.

    Examples:
        >>> groups('''# Methods.
        ... from m._a import AState as AState
        ... from m._a import a as a
        ...
        ... # Words that are
        ... # reserved.
        ... WORDS = ("a",)
        ... ''')
        [('Methods.', ['a', 'AState']), ('Words that are reserved.', ['WORDS'])]
    """
    found: list[tuple[str, list[tuple[str, bool, str]]]] = []
    comment: list[str] = []
    for line in source.splitlines():
        if match := COMMENT.match(line):
            comment.append(match[1])
            continue
        imported, constant = IMPORT.match(line), CONSTANT.match(line)
        if comment and (imported or constant):
            found.append((" ".join(comment), []))
        if not comment or imported or constant:
            comment = []
        if imported:
            module, name = imported.groups()
            found[-1][1].append((module, name[0].isupper(), name))
        elif constant:
            found[-1][1].append(("", True, constant[1]))
    return [(text, [name for *_, name in sorted(names)]) for text, names in found]


def directive(name: str) -> str:
    obj = getattr(tpgm_jax, name)
    kind = "class" if inspect.isclass(obj) else "function" if callable(obj) else "data"
    return f".. auto{kind}:: tpgm_jax.{name}\n"


def section(comment: str, names: list[str]) -> str:
    title, _, rest = comment.rstrip(".").partition(":")
    intro = f"{comment}\n\n" if rest else ""
    body = "\n".join(map(directive, names))
    return f"## {title}\n\n{intro}```{{eval-rst}}\n{body}```\n"


def modules() -> list[str]:
    """Public modules, most of which need another package or are programs."""
    names = [module.name for module in pkgutil.iter_modules(tpgm_jax.__path__)]
    return [f"tpgm_jax.{name}" for name in names if not name.startswith("_")]


def reference() -> str:
    """The page's sections, in Markdown."""
    sections = []
    for comment, public in groups(inspect.getsource(tpgm_jax)):
        # Modules have sections of their own, whether imported or not.
        names = [name for name in public if not inspect.ismodule(getattr(tpgm_jax, name))]
        sections += [section(comment, names)] if names else []
    sections += [
        f"## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n"
        for name in modules()
    ]
    return "\n".join(sections)


def on_source(app: Sphinx, page: str, content: list[str]) -> None:
    if page == PAGE:
        content[0] = content[0].replace(MARK, reference())


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", on_source)
    # The page depends on the package, of which Sphinx does not know: always made anew.
    app.connect("env-get-outdated", lambda *_: [PAGE])
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The site builds, describes every public name, and its examples and links work."""

import inspect
import pkgutil
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tpgm_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# The root's pages are listed by name, because a checkout may contain other files there.
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "RELEASING")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("frameworks/*.md")),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

FENCE = re.compile(r"^ *(`{3,})(\S*)\n(.*?)^ *\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of `language`."""
    return [code for _, name, code in FENCE.findall(page.read_text()) if name == language]


def public_names() -> set[str]:
    """Public names of the package and of its modules, including those it does not import."""
    modules = {x.name for x in pkgutil.iter_modules(tpgm_jax.__path__)}
    names = {name for name, value in vars(tpgm_jax).items() if not inspect.ismodule(value)}
    return {f"tpgm_jax.{name}" for name in names | modules if not name.startswith("_")}


def test_the_reference_lists_every_public_name_once():
    listed = re.findall(r"^\.\. \S+:: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(public_names())


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_describes_every_public_name(tmp_path):
    # Broken links, and pages that are in no table of contents, are warnings too.
    options = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
    command = [sys.executable, "-m", "sphinx", *options, "docs", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, ""), built.stdout
    reference = (tmp_path / "api.html").read_text()
    described = set(re.findall(r'id="(?:module-)?([^"]+)"', reference))
    assert {"tpgm_jax.ftp", "tpgm_jax.Exclude", "tpgm_jax.cli"} <= public_names() <= described
    # An equation in a docstring keeps its line breaks. A formula is rendered without a script.
    assert (
        "r = clip(r - adam(h), 1e-8, max over rows of n_t)\n" in (tmp_path / "api.html").read_text()
    )
    methods = (tmp_path / "methods.html").read_text()
    assert "<math " in methods
    assert "MathJax" not in methods
    # The blank line at the end of a block is for doctest.
    assert not re.search(r"\n\s*\n</pre>", (tmp_path / "start.html").read_text())


# They are for the site alone: the reference, and pages that are files of the root.
SITE_ONLY = ("api", "benchmarks", "changelog", "contributing", "releasing")


@each_page
def test_pages_have_no_directives_which_a_code_host_shows_as_text(page):
    if page.parent.name == "docs" and page.stem in SITE_ONLY:
        return
    assert not re.findall(r"```\{|^:::|\{py:", page.read_text(), re.MULTILINE)


def test_pytest_collects_every_page_with_examples():
    collected = [ROOT / path for path in PROJECT["tool"]["pytest"]["ini_options"]["testpaths"]]
    shown = [page for page in PAGES if blocks(page, "python")]
    assert shown
    assert [x for x in shown if x not in collected and x.parent not in collected] == []


@each_page
def test_python_blocks_are_doctests(page):
    if page == ROOT / "README.md":
        return  # its program can be pasted, and tests/test_readme.py runs it
    for code in blocks(page, "python") + blocks(page, "py") + blocks(page, "pycon"):
        assert code.lstrip().startswith(">>> "), code


@each_page
def test_linked_files_exist(page):
    for link in LINK.findall(page.read_text()):
        if not re.match(r"https?:|#", link):
            assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.slow
def test_the_pictures_of_recorded_numbers_are_drawn_for_both_themes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs/figures")
    for folder in ("demo", "benchmarks"):
        (tmp_path / folder).mkdir()
    runpy.run_path(str(ROOT / "docs/figures/recorded.py"))["main"](tmp_path)
    drawn = {str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*.svg")}
    names = ("demo/figure", "benchmarks/scaling")
    assert drawn == {f"{name}-{theme}.svg" for name in names for theme in ("light", "dark")}
    assert all((ROOT / "docs" / name).exists() for name in drawn)


def test_the_script_draws_all_pictures(tmp_path):
    runpy.run_path(str(ROOT / "docs/figures/draw.py"))["main"](tmp_path)
    drawn, committed = (
        {x.name for x in f.glob("*.svg")} for f in (tmp_path, ROOT / "docs/figures")
    )
    assert drawn == committed
    assert (
        set(re.findall(r"figures/([\w.-]+)", (ROOT / "docs/methods.md").read_text())) == committed
    )

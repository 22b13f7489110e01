"""Facts that stand in several files of the repository agree."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import tpgm_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
YAML = [
    *sorted((ROOT / ".github").rglob("*.yml")),
    ROOT / ".pre-commit-config.yaml",
    ROOT / "CITATION.cff",
]


def load_yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def versions(lines: list[str]) -> dict[str, str]:
    """Package to version, of lines such as `jax==0.10.2` or `jax>=0.10.2`."""
    return dict(re.split("[=>]=", line) for line in lines)


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_settings_of_services_are_well_formed(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_oldest_tested_versions_are_the_declared_floors():
    lines = (ROOT / ".ci/floor.txt").read_text().splitlines()
    floor = versions([line for line in lines if not line.startswith("#")])
    assert floor == versions(PROJECT["dependencies"])


def test_the_workflow_runs_the_whole_check_on_all_pythons_and_the_oldest_versions():
    job = load_yaml(".github/workflows/test.yml")["jobs"]["test"]
    matrix = {x["python"]: x["versions"] for x in job["strategy"]["matrix"]["include"]}
    prefix = "Programming Language :: Python :: "
    classified = {x.removeprefix(prefix) for x in PROJECT["classifiers"] if x.startswith(prefix)}
    assert matrix.keys() == classified
    assert PROJECT["requires-python"] == f">={min(matrix)}"
    assert matrix[min(matrix)] == "oldest"
    steps = [step.get("run", "") for step in job["steps"]]
    assert "bash .ci/run" in steps
    assert "make test-all" in (ROOT / ".ci/run").read_text().splitlines()
    assert "make test-optimized" in steps
    (hold,) = [step for step in job["steps"] if "PIP_CONSTRAINT" in step.get("run", "")]
    assert hold["if"] == "matrix.versions == 'oldest'"
    assert "/.ci/floor.txt" in hold["run"]


def test_the_workflow_has_permission_to_read_the_code_only():
    workflow = load_yaml(".github/workflows/test.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets" not in (ROOT / ".github/workflows/test.yml").read_text()
    actions = [x["uses"] for x in workflow["jobs"]["test"]["steps"] if "uses" in x]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions)


def test_the_citation_names_this_version_and_every_paper_that_a_docstring_names():
    citation = load_yaml("CITATION.cff")
    assert citation["version"] == tpgm_jax.__version__
    assert citation["license"] == PROJECT["license"]
    cited = {paper["url"] for paper in citation["references"]}
    sources = "".join(path.read_text() for path in (ROOT / "tpgm_jax").rglob("*.py"))
    assert cited == set(re.findall(r"https://arxiv.org/abs/[\d.]+\d", sources))
    for paper in citation["references"]:
        assert paper["identifiers"][0]["value"].partition(":")[2] in paper["url"]


def test_modules_of_the_core_import_only_from_those_above_them_in_their_list():
    core = ROOT / "tpgm_jax" / "_core"
    text = (core / "__init__.py").read_text()
    pairs = re.findall(r"^    (\w+)(?:, (\w+))?  ", text, re.MULTILINE)
    order = [name for pair in pairs for name in pair if name]
    assert sorted(["__init__", *order]) == sorted(path.stem for path in core.glob("*.py"))
    imports = re.compile(r"^from (tpgm_jax\S*) import \(?\s*(\w+)", re.MULTILINE)
    for i, name in enumerate(order):
        for module, first in imports.findall((core / f"{name}.py").read_text()):
            module = module if module != "tpgm_jax._core" else f"{module}.{first}"
            assert module.removeprefix("tpgm_jax._core.") in order[:i]

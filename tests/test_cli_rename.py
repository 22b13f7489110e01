"""`--rename`, for names that differ by a prefix or a separator."""

import re

import numpy as np
import pytest
from checkpoint_files import command, compared, load, save

NAMES = ("a.weight", "a.bias", "b.weight", "b.bias")


def flat(value, prefix=""):
    return {f"{prefix}{x}": np.full((2, 3), value + i, np.float32) for i, x in enumerate(NAMES)}


PREFIXES = {
    "classifier": ("", "bert.", "."),
    "data parallel": ("module.", "", "."),
    "both": ("module.", "model.", "."),
    "separator": ("", "", "/"),
    "separator and prefix": ("params/", "", "/"),
}


@pytest.mark.parametrize(("before", "after", "separator"), PREFIXES.values(), ids=PREFIXES)
def test_names_that_differ_by_a_prefix_or_a_separator(before, after, separator, tmp_path, capsys):
    old = {x.replace(".", separator): w for x, w in flat(0).items()}
    old = {f"{before}{name}": x for name, x in old.items()}
    new = flat(4, after) | {"classifier.weight": np.ones((2, 2), np.float32)}
    paths = [save(tmp_path / f"{i}.safetensors", x) for i, x in enumerate((old, new))]
    out = tmp_path / "out.safetensors"
    code, _, err = command(capsys, "project", *paths, "--alpha", 0.5, "-o", out)
    assert (code, "4 names of both would match with --rename" in err) == (2, True)
    assert not out.exists()
    text = command(capsys, "compare", *paths)[1]
    (proposed,) = re.findall(r"^names: 4 names of both would match with (.*)$", text, re.MULTILINE)
    rules = [x.strip("'") for x in proposed.split(" ")]
    found = compared(capsys, *paths, *rules)
    assert (found["renamed"], found["only_finetuned"]) == (4, ["classifier.weight"])
    assert [x["l2"]["largest"] for x in found["tensors"]] == [96**0.5] * 4
    code, text, _ = command(capsys, "project", *paths, "--alpha", 0.5, "-o", out, *rules)
    assert (code, "matched by --rename: 4 names" in text) == (0, True)
    received = load(out)  # under the names of FINETUNED
    assert sorted(received) == sorted(new)
    for name, x in flat(2, after).items():
        np.testing.assert_array_equal(received[name], x)


def test_names_without_a_separator_get_the_prefix_alone(tmp_path, capsys):
    kernel = np.ones((2, 3), np.float32)
    names = ("kernel", "params/kernel")
    paths = [save(tmp_path / f"{i}.npz", {name: kernel}) for i, name in enumerate(names)]
    text = command(capsys, "compare", *paths)[1]
    assert r"1 name of both would match with --rename 's/^params\///'" in text
    assert text.endswith("\nno tensor of both was measured\n")


RULES = {
    "no rule": ("^module", "is not s/REGEX/REPLACEMENT/"),
    "no expression": ("s/(/x/", "is not s/REGEX/REPLACEMENT/"),
    "no such group": (r"s/a/\7/", "is not s/REGEX/REPLACEMENT/"),
    "unknown flag": ("s/a/b/x", "is not s/REGEX/REPLACEMENT/"),
    "no match": ("s/^module//", "matches no name"),
    "two names become one": (r"s/\.(weight|bias)$//", "would both be 'a'"),
}


@pytest.mark.parametrize(("rule", "message"), RULES.values(), ids=RULES)
def test_wrong_rules_are_refused(rule, message, tmp_path, capsys):
    path = save(tmp_path / "x.npz", flat(0))
    code, _, err = command(capsys, "compare", path, path, "--rename", rule)
    assert (code, message in err) == (2, True)


def test_no_proposal_has_a_name_that_a_shell_would_run(tmp_path, capsys):
    paths = [
        save(tmp_path / f"{i}.safetensors", flat(0, x)) for i, x in enumerate(("", "'; reboot #."))
    ]
    assert "--rename" not in command(capsys, "compare", *paths)[1]

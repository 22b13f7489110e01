"""Hugging Face folders."""

import json
import resource
import shutil

import numpy as np
import pytest
from checkpoint_files import command, compared, load, save

NAMES = ("a.weight", "a.bias", "b.weight", "b.bias")


def flat(value):
    return {x: np.full((2, 3), value + i, np.float32) for i, x in enumerate(NAMES)}


def folder(path, tensors, *sizes, **files):
    """A folder with `tensors` in shards of `sizes`, or in one file without sizes."""
    path.mkdir()
    names, by_name = list(tensors), {}
    for i, size in enumerate(sizes, 1):
        shard = f"model-{i:05}-of-{len(sizes):05}.safetensors"
        part, names = names[:size], names[size:]
        save(path / shard, {name: tensors[name] for name in part}, format="pt")
        by_name |= dict.fromkeys(part, shard)
    if sizes:
        index = {"metadata": {"total_size": 96}, "weight_map": by_name}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save(path / "model.safetensors", tensors, format="pt")
    (path / "config.json").write_text('{"model_type": "bert"}')
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def load_folder(path):
    """What a loader reads: every shard of the index."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return load(path / "model.safetensors")
    by_name = json.loads(index.read_text())["weight_map"]
    return {name: load(path / shard)[name] for name, shard in by_name.items()}


@pytest.mark.parametrize("index", [False, True], ids=["folder", "index"])
@pytest.mark.parametrize("sizes", [(), (2, 2), (1, 1, 2)], ids=["one file", "two", "three"])
def test_folders_are_read_and_written_with_their_shards(sizes, index, tmp_path, capsys):
    # The shards are divided differently in the two models.
    old = folder(tmp_path / "old", flat(0), 3, 1)
    new = folder(tmp_path / "new", flat(4), *sizes, tokenizer__json="{}", pytorch_model__bin="x")
    (new / "1_Pooling").mkdir()
    (new / "1_Pooling" / "config.json").write_text("{}")
    (new / ".cache").mkdir()
    (new / ".cache" / "x.json").write_text("{}")
    out = tmp_path / "out"
    file = "model.safetensors.index.json" if sizes else ""
    paths = [x / file if index and file else x for x in (old, new)]
    code, text, err = command(capsys, "interpolate", *paths, "--alpha", 0.25, "-o", out)
    assert (code, err) == (0, "")
    assert "not copied: pytorch_model.bin" in text
    for name, x in load_folder(out).items():
        np.testing.assert_array_equal(x, flat(0)[name] + 1)
    written = {str(x.relative_to(out)) for x in out.rglob("*") if x.is_file()}
    kept = {str(x.relative_to(new)) for x in new.rglob("*") if x.is_file()}
    assert written == kept - {"pytorch_model.bin", ".cache/x.json"}
    for name in written:
        if not name.endswith(".safetensors"):
            assert (out / name).read_bytes() == (new / name).read_bytes()
    found = compared(capsys, old, out)
    assert [x["l2"]["largest"] for x in found["tensors"]] == [6**0.5] * 4
    assert found["totals"]["parameters"] == 24


def broken(path, **changes):
    index = path / "model.safetensors.index.json"
    text = json.loads(index.read_text())
    text["weight_map"] |= changes
    index.write_text(json.dumps(text))


def outside(path):
    shutil.copy(path / "model-00001-of-00002.safetensors", path.parent / "x.safetensors")
    broken(path, **{"a.weight": "../x.safetensors"})


BROKEN = {
    "a shard is missing": (
        lambda path: (path / "model-00002-of-00002.safetensors").unlink(),
        "shard 'model-00002-of-00002.safetensors' is missing",
    ),
    "a name leads out of the folder": (outside, "is not the name of a file beside it"),
    "a tensor is not in its shard": (
        lambda path: broken(path, **{"a.weight": "model-00002-of-00002.safetensors"}),
        "disagree about 'a.weight'",
    ),
    "a tensor is in no shard": (
        lambda path: broken(path, **{"c": "model-00002-of-00002.safetensors"}),
        "disagree about 'c'",
    ),
    "the index is cut off": (
        lambda path: (path / "model.safetensors.index.json").write_text('{"weight_map": {"a'),
        "cannot be read as an index",
    ),
    "the index is deep": (
        lambda path: (path / "model.safetensors.index.json").write_text("[" * 10**5),
        "cannot be read as an index",
    ),
    "the index is a list": (
        lambda path: (path / "model.safetensors.index.json").write_text("[]"),
        "cannot be read as an index",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_folders_are_refused_in_one_line(damage, message, tmp_path, capsys):
    good = folder(tmp_path / "good", flat(0))
    bad = folder(tmp_path / "bad", flat(0), 2, 2)
    damage(bad)
    for args in (("compare",), ("project", "--alpha", 0.5, "-o", tmp_path / "out")):
        code, out, err = command(capsys, args[0], good, bad, *args[1:])
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    assert not (tmp_path / "out").exists()


def test_the_error_for_several_files_without_an_index_names_them(tmp_path, capsys):
    path = folder(tmp_path / "x", flat(0), 4)
    (path / "model.safetensors.index.json").unlink()
    save(path / "other.safetensors", flat(0))
    code, _, err = command(capsys, "compare", path, path)
    assert (code, "name one of 'model-00001-of-00001.safetensors', 'other" in err) == (2, True)


def test_a_full_disk_leaves_no_folder(tmp_path, capsys):
    big = {name: np.zeros(10**5, np.float32) for name in NAMES}
    paths = [folder(tmp_path / f"{i}", big, 1, 3) for i in range(2)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
    try:
        code, _, err = command(capsys, "project", *paths, "--alpha", 0, "-o", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, "File too large" in err) == (2, True)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["0", "1"]


def test_an_existing_folder_stays_whole(tmp_path, capsys):
    old, new, out = (folder(tmp_path / x, flat(i), 2, 2) for i, x in enumerate(("a", "b", "out")))
    for args in ((), ("--force",)):
        assert command(capsys, "project", old, new, "--alpha", 0, "-o", out, *args)[0] == 2
    assert load_folder(out)["a.weight"][0, 0] == 2


def test_a_shard_of_an_input_is_never_overwritten(tmp_path, capsys):
    old = folder(tmp_path / "old", flat(0), 2, 2)
    new = save(tmp_path / "new.safetensors", flat(4))
    shard = old / "model-00001-of-00002.safetensors"
    before = shard.read_bytes()
    for path in (old, old / "model.safetensors.index.json"):
        args = ("interpolate", path, new, "--alpha", 0.5, "--force", "-o", shard)
        code, _, err = command(capsys, *args)
        assert (code, "is an input" in err, shard.read_bytes() == before) == (2, True, True)


UNREADABLE = {
    "weights left to Git LFS": (
        {"model.safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"},
        "it is a Git LFS pointer, not the file: run `git lfs pull`",
    ),
    "a shard left to Git LFS": (
        {
            "model.safetensors.index.json": '{"weight_map": {"a": "1.safetensors"}}',
            "1.safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n",
        },
        "it is a Git LFS pointer, not the file: run `git lfs pull`",
    ),
    "a pickle alone": ({"pytorch_model.bin": "x"}, "if you trust it, convert it"),
    "no weights": ({}, "_METADATA: its weights are missing: fetch them"),
}


@pytest.mark.parametrize(("files", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_the_error_for_a_folder_without_weights_has_the_remedy(files, message, tmp_path, capsys):
    for name, text in (files | {"config.json": "{}"}).items():
        (tmp_path / name).write_text(text)
    code, _, err = command(capsys, "compare", tmp_path, tmp_path)
    assert (code, message in err) == (2, True), err

"""`tpgm-jax project` copies an Orbax directory, except for the arrays that it moves."""

import logging
import re
import resource

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_files import command, load, save, weights

WAYS = {
    "zarr in a database": {},
    "zarr in directories": {"use_ocdbt": False},
    "zarr 3 in a database": {"use_zarr3": True},
    "zarr 3 in directories": {"use_zarr3": True, "use_ocdbt": False},
}


def tree(seed):
    rng = np.random.default_rng(seed)
    return {
        "mlp/~/linear.0": {"w w": rng.normal(size=(3, 2)).astype(np.float16)},
        "list": [jnp.asarray(rng.normal(size=3), jnp.bfloat16), 3 + seed, 2.5 + seed, "text"],
        "zeros": np.zeros((2, 2), np.float32),  # a store may omit chunks of zeros
        "phase": rng.normal(size=2).astype(np.complex64),
        "none": None,
        "empty": {},
    }


def halfway(w0, w):
    if isinstance(w, int | str):
        return w
    # In float64, then rounded once: the mean of two numbers is exact in float64.
    mean = (np.asarray(w0, np.complex128) + np.asarray(w, np.complex128)) / 2
    mean = mean if np.iscomplexobj(w) else mean.real
    return type(w)(mean) if isinstance(w, float) else mean.astype(w.dtype)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.filterwarnings("ignore")  # Orbax warns about shardings
def test_every_leaf_type_and_driver_of_orbax(options, tmp_path, capsys, caplog):
    caplog.set_level(logging.CRITICAL, "absl")
    paths = [tmp_path / name for name in ("w0", "w", "out")]
    checkpointer = ocp.PyTreeCheckpointer(**options)
    for seed, path in enumerate(paths[:2]):
        checkpointer.save(path, tree(seed), custom_metadata={"note": "kept"})
    assert command(capsys, "project", *paths[:2], "--alpha", 0.5, "-o", paths[2])[0] == 0
    w0, w, received = (checkpointer.restore(path) for path in paths)
    assert jax.tree.structure(received) == jax.tree.structure(w)
    for x, old, anchor in zip(*map(jax.tree.leaves, (received, w, w0)), strict=True):
        assert type(x) is type(old)
        assert getattr(x, "dtype", None) == getattr(old, "dtype", None)
        np.testing.assert_array_equal(x, halfway(anchor, old))
    assert checkpointer.metadata(paths[2]).custom_metadata == {"note": "kept"}
    files = [{p.relative_to(path) for p in path.glob("*") if p.is_file()} for path in paths[1:]]
    assert files[0] == files[1]


@pytest.mark.parametrize("options", [{}, {"use_ocdbt": False}], ids=["database", "directories"])
@pytest.mark.filterwarnings("ignore")
def test_arrays_of_4_bits_are_compared_and_copied_if_they_are_equal(options, tmp_path, capsys):
    def narrow(x):  # NumPy has no 4-bit numbers
        return jnp.zeros(5000, jnp.int4).at[2500].set(x)

    paths = [tmp_path / name for name in ("w0", "w", "out")]
    checkpointer = ocp.PyTreeCheckpointer(**options)
    for seed, path in enumerate(paths[:2]):
        checkpointer.save(path, {"w": np.full(3, seed, np.float32), "narrow": narrow(seed)})
    assert "not measured (int4, quantized), different" in command(capsys, "compare", *paths[:2])[1]
    args = ("project", *paths[:2], "--alpha", 0.5, "-o", paths[2])
    code, _, err = command(capsys, *args)
    assert (code, "dequantize" in err) == (2, True)
    assert command(capsys, *args, "--exclude", "narrow")[0] == 0
    np.testing.assert_array_equal(checkpointer.restore(paths[2])["narrow"], narrow(1))
    assert "not measured (int4, quantized), the same" in command(capsys, "compare", *paths[1:])[1]


def test_a_read_only_directory_is_copied(tmp_path, capsys):
    path = save(tmp_path / "w", {"w": np.ones(3, np.float32)})
    for directory in (*(x for x in path.rglob("*") if x.is_dir()), path):
        directory.chmod(0o555)
    out = tmp_path / "out"
    assert command(capsys, "project", path, path, "--alpha", 0.5, "-o", out)[0] == 0
    # Check the mode, because the tests may run as a user who needs no permission.
    assert all(x.stat().st_mode & 0o700 == 0o700 for x in (out, *out.rglob("*")) if x.is_dir())
    for directory in (path, *(x for x in path.rglob("*") if x.is_dir())):
        directory.chmod(0o755)


def test_a_parameter_may_share_its_name_with_a_file_of_orbax(tmp_path, capsys):
    path = save(tmp_path / "w", {"_METADATA": np.ones(3, np.float32)})
    assert command(capsys, "project", path, path, "--alpha", 0.5, "-o", tmp_path / "out")[0] == 0
    np.testing.assert_array_equal(load(tmp_path / "out")["_METADATA"], 1.0)


def test_orbax_restores_the_projected_step_of_a_checkpoint_manager(tmp_path, capsys):
    for seed in range(2):
        with ocp.CheckpointManager(tmp_path / f"run{seed}") as manager:
            manager.save(7, args=ocp.args.StandardSave({"w": np.full(3, seed, np.float32)}))
    steps = [tmp_path / f"run{seed}" / "7" for seed in range(2)]
    out = tmp_path / "out"
    assert command(capsys, "project", *steps, "--alpha", 0.25, "-o", out)[0] == 0
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(out, {"w": np.zeros(3, np.float32)})
    np.testing.assert_array_equal(restored["w"], np.full(3, 0.25))


def test_a_full_disk_is_reported_in_one_line(tmp_path, capsys):
    numbers = np.random.default_rng(0).normal(size=10**5).astype(np.float32)
    paths = [save(tmp_path / f"{i}", {"w": numbers + i}) for i in range(2)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, before[1]))
    try:
        code, _, err = command(capsys, "project", *paths, "--alpha", 0.5, "-o", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, err.count("\n")) == (2, 1)
    assert re.search("cannot be written, because .*File too large", err), err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1"]


# Damaged directories.


def orbax(tmp_path):
    return save(tmp_path / "orbax", weights(0))


def without_structure(path):
    (path / "_METADATA").unlink()


def structure_cut_off(path):
    text = (path / "_METADATA").read_text()
    (path / "_METADATA").write_text(text[: len(text) // 2])


def structure_deep(path):
    (path / "_METADATA").write_text('{"tree_metadata":' * 10**5)


def data_gone(path):
    for file in [*path.glob("d/*"), *path.glob("ocdbt.process_0/d/*")]:
        file.unlink()


def data_cut_off(path):
    for file in [*path.glob("d/*"), *path.glob("ocdbt.process_0/d/*")]:
        file.write_bytes(file.read_bytes()[:-20])


DAMAGES = {
    without_structure: "is not a checkpoint",
    structure_cut_off: "cannot be read",
    structure_deep: "cannot be read",
    data_gone: "cannot be read",
    data_cut_off: "cannot be read",
}


@pytest.mark.parametrize(
    ("damage", "message"), DAMAGES.items(), ids=[damage.__name__ for damage in DAMAGES]
)
def test_damaged_orbax_directories_are_refused_in_one_line(damage, message, tmp_path, capsys):
    path = orbax(tmp_path)
    damage(path)
    code, out, err = command(capsys, "compare", path, path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err), err


@pytest.mark.parametrize("options", [{}, {"use_ocdbt": False}], ids=["database", "directories"])
def test_missing_arrays_are_reported_in_one_line(options, tmp_path, capfd):
    path = tmp_path / "orbax"
    tree = {f"layer_{i}": {"kernel": np.ones(3, np.float32)} for i in range(100)}
    ocp.PyTreeCheckpointer(**options).save(path, tree)
    text = (path / "_METADATA").read_text()
    (path / "_METADATA").write_text(text.replace("kernel", "weight"))
    capfd.readouterr()
    # Not capsys, because threads of Orbax print by themselves.
    code, out, err = command(capfd, "compare", path, path)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "does not exist" in err


def test_no_name_leads_out_of_an_orbax_directory(tmp_path, capsys):
    # Without OCDBT each parameter is a directory, and its name is a path. Orbax refuses this one.
    path = tmp_path / "orbax"
    ocp.PyTreeCheckpointer(use_ocdbt=False).save(path, {"gain": np.ones(2, np.float32)})
    (path / "gain").rename(tmp_path / "gain")
    text = (path / "_METADATA").read_text()
    (path / "_METADATA").write_text(text.replace("gain", "../gain"))
    code, out, err = command(capsys, "compare", path, path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_an_orbax_bomb_is_refused(tmp_path, capsys):
    # 80 MB of zeros, which Orbax compresses to a few bytes.
    path = save(tmp_path / "orbax", {"w": np.zeros(20 * 2**20, np.float32)})
    code, _, err = command(capsys, "compare", path, path)
    assert code == 2
    assert "bomb" in err


def test_the_step_of_a_checkpoint_manager_is_found(tmp_path, capsys):
    step = tmp_path / "100"
    save(step / "default", weights(0))
    assert command(capsys, "compare", step, step)[0] == 0
    save(step / "ema", weights(0))
    code, _, err = command(capsys, "compare", step, step)
    assert code == 2
    assert "name one of 'default', 'ema'" in err

"""Missing, damaged or malicious files end with exit code 2 and one line."""

import io
import json
import os
import pickle
import re
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from checkpoint_files import command, save

HUGE = 2**40
HARM = Path(tempfile.gettempdir()) / f"tpgm-jax-harm-{os.getpid()}"


class Harmful:
    """Creates the directory `HARM` if it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, (str(HARM),))


def safetensors_bytes(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start, stop, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def array(shape: Any, dtype="float32", data=b"\0" * 8, code=1):
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


def packed(value) -> Any:
    return msgpack.packb(value)


def npz(*members, **options):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def npy(array: Any = None, header: Any = None, data=b"", version=(1, 0)):
    file = io.BytesIO()
    if header is None:
        np.lib.format.write_array(file, array, allow_pickle=True)
    else:
        text = header.encode()
        file.write(b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text + data)
    return file.getvalue()


def header(shape, descr="<f4"):
    return repr({"descr": descr, "fortran_order": False, "shape": shape}) + "\n"


objects = np.array([Harmful()], dtype=object)
BOMB = npz(("w.npy", npy(np.zeros(20 * 2**20, np.float32))), compression=zipfile.ZIP_DEFLATED)
PARTS = [(f"{i}.npy", npy(np.zeros(3 * 2**20, np.float32))) for i in range(8)]
BOMB_IN_PARTS = npz(*PARTS, compression=zipfile.ZIP_DEFLATED)
TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2
TWICE = TWICE.replace(b'},{"a"', b'},"a"').rstrip(b",") + b"}"

HOSTILE = {
    # name: suffix, contents, and a regular expression for the message
    "empty": (".npz", b"", "is empty"),
    "text": ("", b"hello, world", "format is unknown"),
    "git lfs": (".safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "pickle": (".pt", pickle.dumps({"w": 1}, protocol=4), "never loaded"),
    "harmful pickle": (".npz", pickle.dumps(Harmful(), protocol=2), "never loaded"),
    "old pickle": (".pkl", pickle.dumps({"w": 1}, protocol=0), "never loaded"),
    "pytorch": (".bin", npz(("x/data.pkl", pickle.dumps({}))), "save_file"),
    "header beyond the file": (".safetensors", b"\xff" * 7 + b"\x7f{}", "header too large"),
    "header of 4 GiB": (".safetensors", safetensors_bytes({}, length=2**32), "header too large"),
    "header cut off": (".safetensors", b"\x08\0\0", "cannot be read"),
    "no json": (".safetensors", safetensors_bytes(b"{" * 50), "InvalidHeader|invalid JSON"),
    "json bomb": (".safetensors", safetensors_bytes(b'{"a":' * 10**5), "cannot be read"),
    "data cut off": (
        ".safetensors",
        safetensors_bytes({"a": tensor(0, 8, [2])}, b"\0" * 4),
        "cannot be read",
    ),
    "data too long": (
        ".safetensors",
        safetensors_bytes({"a": tensor(0, 8, [2])}, b"\0" * 9),
        "cannot be read",
    ),
    "offsets backwards": (
        ".safetensors",
        safetensors_bytes({"a": tensor(8, 0, [2])}, b"\0" * 8),
        "cannot be read",
    ),
    "offsets negative": (
        ".safetensors",
        safetensors_bytes({"a": tensor(-8, 0, [2])}, b"\0" * 8),
        "cannot be read",
    ),
    "offsets overlapping": (
        ".safetensors",
        safetensors_bytes({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, b"\0" * 12),
        "cannot be read",
    ),
    "shape too large": (
        ".safetensors",
        safetensors_bytes({"a": tensor(0, 8, [HUGE])}, b"\0" * 8),
        "cannot be read",
    ),
    "shape that overflows": (
        ".safetensors",
        safetensors_bytes({"a": tensor(0, 0, [2**32, 2**32])}),
        "cannot be read",
    ),
    "65 axes": (
        ".safetensors",
        safetensors_bytes({"a": tensor(0, 4, [1] * 65)}, b"\0" * 4),
        "65 axes",
    ),
    "a name of 40,000 slashes": (
        ".safetensors",
        safetensors_bytes({"/" * 40_000: tensor(0, 4, [1])}, b"\0" * 4),
        "name of 40000 characters",
    ),
    "a name of 200 levels": (
        ".safetensors",
        safetensors_bytes({"a/" * 200: tensor(0, 4, [1])}, b"\0" * 4),
        "100 levels",
    ),
    "unknown dtype": (
        ".safetensors",
        safetensors_bytes({"a": tensor(0, 8, [2], "X9")}, b"\0" * 8),
        "cannot be read",
    ),
    "a key twice": (".safetensors", safetensors_bytes(TWICE, b"\0" * 8), "cannot be read"),
    "msgpack cut off": (".msgpack", packed({"a": array((2,))})[:-1], "cannot be read"),
    "msgpack with a tail": (".msgpack", packed({"a": array((2,))}) + b"\0", "extra data"),
    "a long key": (".msgpack", packed({"a" * 2000: array((2,))}), "name is too long"),
    "a key that is there twice": (".msgpack", b"\x82\xa1a\x01\xa1a\x02", "there twice"),
    "hdf5": (".h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "it is HDF5"),
    "hdf5 under another name": (".msgpack", b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "it is HDF5"),
    "gguf": (".gguf", b"GGUF\3\0\0\0" + b"\0" * 99, "it is GGUF"),
    "npy": (".npy", npy(np.ones(3)), "a single array"),
    "gzip": (".gz", b"\x1f\x8b\x08" + b"\0" * 99, "gzip"),
    "web page": (".bin", b"<!DOCTYPE html>" + b" " * 99, "a web page"),
    "json": (".json", b'{"a": 1}' + b" " * 99, "it is JSON"),
    "tar": (".pt", b"x" * 257 + b"ustar" + b"\0" * 99, "never loaded"),
    "msgpack of no map": (".msgpack", packed(7), "no map"),
    "map of 4 billion": (".msgpack", b"\xdf\xff\xff\xff\xff\xa1a", "cannot be read"),
    "list of 4 billion": (".msgpack", b"\x81\xa1a\xdd\xff\xff\xff\xff", "cannot be read"),
    "bytes of 4 GiB": (".msgpack", b"\x81\xa1a\xc6\xff\xff\xff\xffxyz", "cannot be read"),
    "array of 4 GiB": (".msgpack", b"\x81\xa1a\xc9\xff\xff\xff\xff\1xyz", "cannot be read"),
    "deep maps": (".msgpack", b"\x81\xa1a" * 10**5 + b"\xc0", "StackError"),
    "deep lists": (".msgpack", b"\x81\xa1a" + b"\x91" * 10**5 + b"\xc0", "StackError"),
    "deep key": (".msgpack", b"\x81" + b"\x91" * 10**5 + b"\xc0", "cannot be read"),
    "array too small": (".msgpack", packed({"a": array((HUGE,))}), "8 bytes, and"),
    "array with a tail": (
        ".msgpack",
        packed({"a": msgpack.ExtType(1, packed(((2,), "float32", b"\0" * 8)) + b"\0")}),
        "ExtraData",
    ),
    "array of negative size": (".msgpack", packed({"a": array((-2,))}), "invalid shape"),
    "array of no shape": (".msgpack", packed({"a": array("xx")}), "cannot be read"),
    "array of nothing": (".msgpack", packed({"a": msgpack.ExtType(1, b"")}), "cannot be read"),
    "chunks that do not match": (
        ".msgpack",
        packed({"__msgpack_chunked_array__": True, "shape": {"0": HUGE}, "chunks": {"0": 1}}),
        "do not form an array",
    ),
    "two of the same path": (
        ".msgpack",
        packed({"a": {"b": array((2,))}, "a/b": array((2,))}),
        "two parameters called 'a/b'",
    ),
    "objects": (".npz", npz(("w.npy", npy(objects))), "never loaded"),
    "zip without arrays": (".npz", npz(("readme", b"x")), "without arrays"),
    "zip cut off": (".npz", npz(("w.npy", npy(np.ones(9))))[:-9], "cannot be read"),
    "zip bomb": (".npz", BOMB, "bomb"),
    "zip bomb in parts": (".npz", BOMB_IN_PARTS, "bomb"),
    "shape beyond its member": (
        ".npz",
        npz(("w.npy", npy(header=header((HUGE,)), data=b"\0" * 8))),
        "do not match",
    ),
    "negative shape": (
        ".npz",
        npz(("w.npy", npy(header=header((-2, -1)), data=b"\0" * 8))),
        "do not match|cannot be read",
    ),
    "header that is code": (
        ".npz",
        npz(("w.npy", npy(header="__import__('os').abort()\n"))),
        "cannot be read",
    ),
    "header that is deep": (".npz", npz(("w.npy", npy(header="(" * 9000))), "cannot be read"),
    "header of the future": (
        ".npz",
        npz(("w.npy", npy(header=header((1,)), version=(9, 0)))),
        "cannot be read|is unknown",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("suffix", "contents", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_in_one_line(suffix, contents, message, tmp_path, capsys):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(contents)
    good = save(tmp_path / "good.npz", {"w": np.ones(2, np.float32)})
    for args in (("compare", path, good), ("project", good, path, "--alpha", 0, "-o", "out")):
        code, out, err = command(capsys, *args)
        assert (code, out) == (2, "")
        assert err.startswith("tpgm-jax: error: ")
        assert err.count("\n") == 1
        assert re.search(message, err), err
    assert not HARM.exists()
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, "good.npz"])


def test_missing_paths_and_wrong_kinds_of_file_are_refused(tmp_path, capsys):
    good = save(tmp_path / "good.npz", {"w": np.ones(2, np.float32)})
    os.mkfifo(tmp_path / "fifo")  # opening it would block
    for path, message in (
        (tmp_path / "none.npz", "No such file"),
        (tmp_path / "fifo", "neither a file nor a directory"),
        (
            tmp_path,
            "is not a checkpoint, because neither it nor a directory in it has safetensors or "
            f"Orbax's file _METADATA: name the file, such as {good}",
        ),
    ):
        code, _, err = command(capsys, "compare", good, path)
        assert code == 2
        assert message in err


def test_a_folder_with_a_pipe_for_weights_does_not_block(tmp_path, capsys):
    os.mkfifo(tmp_path / "model.safetensors")
    code, _, err = command(capsys, "compare", tmp_path, tmp_path)
    assert (code, "is not a checkpoint" in err) == (2, True)


def test_directories_of_tensorflow_are_named(tmp_path, capsys):
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    code, _, err = command(capsys, "compare", tmp_path, tmp_path)
    assert (code, "it is a TensorFlow checkpoint" in err) == (2, True)

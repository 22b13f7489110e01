"""NumPy's npz: a zip archive of arrays. Object arrays are refused, because they are pickles."""

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np

from tpgm_jax.cli._checkpoint import (
    DTYPES,
    Entry,
    Replacement,
    bytes_of,
    check_expansion,
    collect,
)
from tpgm_jax.cli._errors import CommandError, translate_read_errors
from tpgm_jax.cli._text import printable

KIND = "npz"


def open_npz(path: Path) -> "Npz":
    with translate_read_errors(path, KIND):
        archive = zipfile.ZipFile(path)
        try:
            return Npz(path, archive)
        except BaseException:
            archive.close()
            raise


class Npz:
    kind = KIND

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self._archive = path, archive
        self._stored: dict[str, np.dtype] = {}
        self._members: dict[str, zipfile.ZipInfo] = {}
        entries = []
        infos = archive.infolist()
        if any(info.filename.endswith(".pkl") for info in infos):
            raise CommandError(pickle_message(path))
        for info in infos:
            check_expansion(path, info.filename, info.file_size, path.stat().st_size)
            if info.filename.endswith(".npy"):
                entries.append(self._entry(info))
        if not entries:
            raise CommandError(
                f"{path} cannot be read, because it is a zip archive without arrays (.npy): pass a "
                "file that `numpy.savez` wrote."
            )
        self.entries = collect(path, entries)

    def _entry(self, info: zipfile.ZipInfo) -> Entry:
        name = info.filename.removesuffix(".npy")
        with self._archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, _, stored = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, _, stored = np.lib.format.read_array_header_2_0(file)
            else:
                raise CommandError(
                    f"{self.path}: {printable(name)!r} cannot be read, because the version of its "
                    "header is unknown: save it with `numpy.savez`."
                )
            header = file.tell()
        if stored.hasobject:
            raise CommandError(
                f"{self.path}: {printable(name)!r} is never loaded, because it is an array of "
                "Python objects, a pickle that could run any code: save only numbers."
            )
        # NumPy has no name for bfloat16, and writes it as two untyped bytes.
        dtype = np.dtype(ml_dtypes.bfloat16) if stored == np.dtype("V2") else None
        dtype = dtype or DTYPES.get(stored.name)
        size = bytes_of(shape, stored)
        if min(shape, default=0) < 0 or header + size != info.file_size:
            raise CommandError(
                f"{self.path}: {printable(name)!r} cannot be read, because it has {info.file_size} "
                f"bytes, which do not match shape {shape} and dtype {stored}: fetch or save the "
                "file again."
            )
        self._stored[name], self._members[name] = stored, info
        label = stored.name if dtype is None else dtype.name
        return Entry(name, tuple(shape), dtype, printable(label, 40), size)

    def close(self) -> None:
        self._archive.close()

    def expect(self, names: Sequence[str]) -> None:
        del names  # entries are read independently

    def read(self, name: str) -> np.ndarray:
        with (
            translate_read_errors(self.path, KIND),
            self._archive.open(self._members[name]) as file,
        ):
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # reading to the end also verifies the checksum
                raise CommandError(
                    f"{self.path}: {printable(name)!r} cannot be read, because bytes follow its "
                    "end: fetch or save the file again."
                )
        dtype = self.entries[name].dtype
        if dtype is None:
            return np.frombuffer(array.tobytes(), np.uint8)
        # Convert the byte order, and restore the dtype of bfloat16.
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
        return native.view(dtype)

    def save(self, target: Path, replacement: Replacement) -> None:
        names = {info.filename: name for name, info in self._members.items()}
        with zipfile.ZipFile(target, "x", allowZip64=True) as out:
            for old in self._archive.infolist():
                new = zipfile.ZipInfo(old.filename, old.date_time)
                new.compress_type, new.external_attr = old.compress_type, old.external_attr
                name = names.get(old.filename)
                array = None if name is None else replacement(self.entries[name])
                # Compression may enlarge incompressible data a little.
                large = old.file_size > 2**31 - 2**24
                with out.open(new, "w", force_zip64=large) as file:
                    if array is None or name is None:
                        self._copy(old, file)
                    else:
                        stored = self._stored[name]
                        array = array.view(stored) if stored.kind == "V" else array.astype(stored)
                        np.lib.format.write_array(file, array, allow_pickle=False)

    def _copy(self, info: zipfile.ZipInfo, out: IO[bytes]) -> None:
        with translate_read_errors(self.path, KIND):
            file = self._archive.open(info)
        with file:
            shutil.copyfileobj(file, out, 2**20)


def pickle_message(path: Path) -> str:
    """The error message for a pickle."""
    return (
        f"{path} is never loaded, because it is a pickle (PyTorch and joblib write such files) and "
        "could run any code: if you trust it, convert it with `safetensors.torch.save_file("
        "torch.load(path, weights_only=True), 'model.safetensors')`."
    )

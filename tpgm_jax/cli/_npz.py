"""NumPy's npz: a zip archive of arrays. Object arrays are refused, because they are pickles."""

import shutil
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from tpgm_jax.cli._checkpoint import (
    DTYPES,
    Checkpoint,
    Entry,
    Replacement,
    bytes_of,
    check_expansion,
)
from tpgm_jax.cli._errors import CommandError, translate_read_errors
from tpgm_jax.cli._text import printable

KIND = "npz"


class Npz(Checkpoint):
    kind = KIND

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self._archive = archive
        self._stored: dict[str, np.dtype] = {}
        infos, stored = archive.infolist(), path.stat().st_size
        if any(info.filename.endswith(".pkl") for info in infos):
            raise CommandError(pickle_message(path))
        for info in infos:
            check_expansion(path, info.filename, info.file_size, stored)
        entries = [self._entry(path, info) for info in infos if info.filename.endswith(".npy")]
        if not entries:
            raise CommandError(
                f"{path} cannot be read, because it is a zip archive without arrays (.npy): pass a "
                "file that `numpy.savez` wrote."
            )
        super().__init__(path, entries)

    def _entry(self, path: Path, info: zipfile.ZipInfo) -> Entry:
        name = info.filename.removesuffix(".npy")
        # The header alone, because NumPy allocates what it claims.
        with self._archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, _, stored = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, _, stored = np.lib.format.read_array_header_2_0(file)
            else:
                raise ValueError(f"the version of the header of {name!r} is unknown")
            header = file.tell()
        if stored.hasobject:
            raise CommandError(
                f"{path}: {printable(name)!r} is never loaded, because it is an array of "
                "Python objects, a pickle that could run any code: save only numbers."
            )
        # NumPy has no name for bfloat16, and writes it as two untyped bytes.
        dtype = np.dtype(ml_dtypes.bfloat16) if stored == np.dtype("V2") else None
        dtype = dtype or DTYPES.get(stored.name)
        size = bytes_of(shape, stored)
        if min(shape, default=0) < 0 or header + size != info.file_size:
            raise CommandError(
                f"{path}: {printable(name)!r} cannot be read, because it has {info.file_size} "
                f"bytes, which do not match shape {shape} and dtype {stored}: fetch or save the "
                "file again."
            )
        self._stored[name] = stored
        label = stored.name if dtype is None else dtype.name
        return Entry(name, tuple(shape), dtype, printable(label, 40), size)

    def close(self) -> None:
        self._archive.close()

    def read(self, name: str) -> np.ndarray:
        reading = translate_read_errors(self.path, KIND)
        with reading, self._archive.open(f"{name}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # reading to the end also verifies the checksum
                raise ValueError(f"bytes follow the end of {name!r}")
        dtype = self.entries[name].dtype
        if dtype is None:
            return np.frombuffer(array.tobytes(), np.uint8)
        # Convert the byte order, and restore the dtype of bfloat16.
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
        return native.view(dtype)

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        with zipfile.ZipFile(target, "x", allowZip64=True) as out:
            for old in self._archive.infolist():
                new = zipfile.ZipInfo(old.filename, old.date_time)
                new.compress_type, new.external_attr = old.compress_type, old.external_attr
                entry = self.entries.get(old.filename.removesuffix(".npy"))
                array = None
                if entry is not None and old.filename.endswith(".npy"):
                    array = replacement(entry)
                # Compression may enlarge incompressible data a little.
                with out.open(new, "w", force_zip64=old.file_size > 2**31 - 2**24) as file:
                    if array is None or entry is None:
                        with translate_read_errors(self.path, KIND):
                            source = self._archive.open(old)
                        with source:
                            shutil.copyfileobj(source, file, 2**20)
                    else:
                        stored = self._stored[entry.name]
                        array = array.view(stored) if stored.kind == "V" else array.astype(stored)
                        np.lib.format.write_array(file, array, allow_pickle=False)
        return []


def open_npz(path: Path) -> Npz:
    with translate_read_errors(path, KIND):
        archive = zipfile.ZipFile(path)
        try:
            return Npz(path, archive)
        except BaseException:
            archive.close()
            raise


def pickle_message(path: Path) -> str:
    """The error message for a pickle."""
    return (
        f"{path} is never loaded, because it is a pickle (PyTorch and joblib write such files) and "
        "could run any code: if you trust it, convert it with `safetensors.torch.save_file("
        "torch.load(path, weights_only=True), 'model.safetensors')`."
    )

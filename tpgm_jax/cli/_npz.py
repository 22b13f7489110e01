"""NumPy's npz: a zip archive of arrays. Object arrays are refused, because they are pickles."""

import shutil
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from tpgm_jax.cli._checkpoint import Checkpoint, Entry, Replacement, bytes_of, check_expansion
from tpgm_jax.cli._errors import CommandError, printable, reading, unreadable

KIND = "npz"
# NumPy has no name for bfloat16, and writes it as two untyped bytes.
_BFLOAT16 = np.dtype("V2")
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Npz(Checkpoint):
    kind = KIND

    def __init__(self, path: Path):
        self._stored: dict[str, np.dtype] = {}
        with reading(path, KIND):
            self._archive = zipfile.ZipFile(path)
            members = self._archive.infolist()
            if any(member.filename.endswith(".pkl") for member in members):
                raise pickle_error(path)
            check_expansion(path, sum(x.file_size for x in members), path.stat().st_size)
            super().__init__(
                path, (self._entry(path, x) for x in members if x.filename.endswith(".npy"))
            )
        if not self.entries:
            because, remedy = "it is a zip archive without arrays", "pass what `numpy.savez` wrote"
            raise unreadable(path, because, remedy)

    def _entry(self, path: Path, member: zipfile.ZipInfo) -> Entry:
        name = member.filename.removesuffix(".npy")
        # The header alone, because NumPy allocates what it claims.
        with self._archive.open(member) as file:
            # Version 3 is for names of fields, which no weights have.
            shape, _, stored = _HEADERS[np.lib.format.read_magic(file)](file)
            size, expected = bytes_of(shape, stored), member.file_size - file.tell()
        if stored.hasobject:
            because = "it is an array of Python objects, a pickle that could run any code"
            raise CommandError(f"{name!r} of {path} is never loaded", because, "save only numbers")
        if min(shape, default=0) < 0 or size != expected:
            raise ValueError(f"shape {shape} and dtype {stored} of {name!r} do not match its bytes")
        self._stored[name] = stored
        label = "bfloat16" if stored == _BFLOAT16 else printable(stored.name, limit=40)
        return Entry(name, shape, label, size)

    def close(self) -> None:
        self._archive.close()

    def read(self, name: str) -> np.ndarray:
        with reading(self.path, KIND), self._archive.open(f"{name}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            file.read(1)  # the end, where the checksum is verified
        if self.entries[name].dtype is None:
            return np.frombuffer(array.tobytes(), np.uint8)
        if self._stored[name] == _BFLOAT16:
            array = array.view(ml_dtypes.bfloat16)
        return array.astype(array.dtype.newbyteorder("="), order="C", copy=False)

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        with zipfile.ZipFile(target, "x") as out:
            for old in self._archive.infolist():
                name, is_array = old.filename.removesuffix(".npy"), old.filename.endswith(".npy")
                new = replacement(self.entries[name]) if is_array else None
                member = zipfile.ZipInfo(old.filename, old.date_time)
                member.compress_type, member.file_size = old.compress_type, old.file_size
                with out.open(member, "w") as file:
                    if new is None:
                        with reading(self.path, KIND):
                            source = self._archive.open(old)
                        with source:
                            shutil.copyfileobj(source, file, 2**20)
                    else:
                        stored = self._stored[name]
                        new = new.view(stored) if stored == _BFLOAT16 else new.astype(stored)
                        np.lib.format.write_array(file, new, allow_pickle=False)
        return []


def pickle_error(path: Path) -> CommandError:
    return CommandError(
        f"{path} is never loaded",
        "it is a pickle (PyTorch and joblib write such files) and could run any code",
        "if you trust it, convert it with `safetensors.torch.save_file(torch.load(path, "
        "weights_only=True), 'model.safetensors')`",
    )

"""NumPy's npz: a zip archive of arrays. Object arrays are refused, because they are pickles."""

import zipfile
from pathlib import Path

import numpy as np

from tpgm_jax.cli._checkpoint import Checkpoint, Entry, Replacement, bytes_of, check_expansion
from tpgm_jax.cli._errors import CommandError, printable, reading

# NumPy has no name for bfloat16, and writes it as two untyped bytes.
_BFLOAT16 = np.dtype("V2")


class Npz(Checkpoint):
    kind = "npz"

    def __init__(self, path: Path):
        with reading(path, self.kind):
            self._archive = zipfile.ZipFile(path)
            members = self._archive.infolist()
            if any(member.filename.endswith(".pkl") for member in members):
                raise pickle_error(path)
            check_expansion(path, sum(x.file_size for x in members), path.stat().st_size)
            arrays = (x for x in members if x.filename.endswith(".npy"))
            super().__init__(path, map(self._entry, arrays))
            if not self.entries:
                raise ValueError("it is a zip archive without arrays")

    def _entry(self, member: zipfile.ZipInfo) -> Entry:
        name = member.filename.removesuffix(".npy")
        # The header alone, because NumPy allocates what it claims.
        with self._archive.open(member) as file:
            npy = np.lib.format
            first = npy.read_magic(file) == (1, 0)
            read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
            shape, _, stored = read(file)
            size, expected = bytes_of(shape, stored), member.file_size - file.tell()
        if stored.hasobject:
            raise ValueError(f"{name!r} is an array of Python objects, a pickle, and never loaded")
        if min(shape, default=0) < 0 or size != expected:
            raise ValueError(f"shape {shape} and dtype {stored} of {name!r} do not match its bytes")
        label = "bfloat16" if stored == _BFLOAT16 else printable(stored.name, limit=40)
        return Entry(name, shape, label, size, (member, stored))

    def close(self) -> None:
        self._archive.close()

    def _read(self, entry: Entry) -> np.ndarray:
        with self._archive.open(entry.source[0]) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            file.read(1)  # the end, where the checksum is verified
        if entry.dtype is None:
            return np.frombuffer(array.tobytes(), np.uint8)
        array = array.view(entry.dtype) if array.dtype == _BFLOAT16 else array
        return array.astype(entry.dtype, order="C", copy=False)  # from another byte order

    def save(self, target: Path, replacement: Replacement) -> list[str]:
        with zipfile.ZipFile(target, "x") as out:
            for entry in self.entries.values():
                (old, stored), array = entry.source, replacement(entry)
                array = self.read(entry.name) if array is None else array
                same_bytes = entry.dtype is None or stored == _BFLOAT16
                array = array.view(stored) if same_bytes else array.astype(stored)
                member = zipfile.ZipInfo(old.filename, old.date_time)
                member.compress_type, member.file_size = old.compress_type, old.file_size
                with out.open(member, "w") as file:
                    np.lib.format.write_array(file, array.reshape(entry.shape), allow_pickle=False)
                del array  # before the next one is read
        others = [x for x in self._archive.namelist() if not x.endswith(".npy")]
        return [f"not copied: {printable(', '.join(others))}"] if others else []


def pickle_error(path: Path) -> CommandError:
    return CommandError(
        f"{path} is never loaded",
        "it is a pickle (PyTorch and joblib write such files) and could run any code",
        "if you trust it, convert it with `safetensors.torch.save_file(torch.load(path, "
        "weights_only=True), 'model.safetensors')`",
    )

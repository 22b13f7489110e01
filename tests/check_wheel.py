"""Builds the wheel and uses it in an environment that holds nothing else.

Run by `make wheel`. It catches: a module or `py.typed` left out of the wheel, a
dependency that is used but not declared, and one that is declared but not needed.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNTIME = {"jax", "jaxlib", "optax"}
FRAMEWORKS = ("flax", "equinox", "sklearn", "matplotlib", "orbax", "rich", "torch")

USE = f"""
import importlib.util
import jax, jax.numpy as jnp, optax, tpgm_jax
for name in {FRAMEWORKS!r}:
    assert importlib.util.find_spec(name) is None, f"{{name}} came along with tpgm-jax"
params = {{"kernel": jnp.ones((3, 2)), "head": jnp.ones(2)}}
tx = tpgm_jax.ftp(optax.adamw(1e-3), exclude="head")
updates, state = jax.jit(tx.update)(params, tx.init(params), params)
assert list(tpgm_jax.radii(state, params)) == ["kernel"]
assert "constrains" in str(tpgm_jax.report(state, params))
try:
    import tpgm_jax.linen
except ModuleNotFoundError as error:
    assert "pip install flax" in str(error), error
else:
    raise AssertionError("tpgm_jax.linen was imported without Flax")
print("tpgm_jax", tpgm_jax.__version__, "works from its wheel, with jax", jax.__version__)
"""


def build(folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        requirements = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist")
    packed = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tpgm_jax").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    source.add("tpgm_jax_main.py")
    assert packed == source, f"the wheel and the source differ in {packed ^ source}"
    assert any(name.endswith("licenses/LICENSE") for name in names), "the wheel has no licence"
    runtime = {r.split(">")[0].strip() for r in requirements or [] if "extra ==" not in r}
    assert runtime == RUNTIME, f"runtime dependencies are {runtime}"


def check_use(wheel: Path, folder: Path) -> None:
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    subprocess.run(install, check=True)
    # From another folder, so that Python cannot import the source tree instead of the wheel.
    subprocess.run([python, "-W", "error", "-c", USE], check=True, cwd=folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        wheel = build(Path(temporary) / "dist")
        check_contents(wheel)
        check_use(wheel, Path(temporary) / "venv")

"""Time and memory of `tpgm-jax` on folders of 2 GB in three shards, beside plain scripts.

    python -m benchmarks.cli_memory

The plain scripts load both models with safetensors and NumPy. Needs 8 GB of disk and 7 of memory.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time

MAKE = """
import json, ml_dtypes, numpy as np, pathlib, sys
from safetensors.numpy import save_file
folder, rng, shards = pathlib.Path(sys.argv[1]), np.random.default_rng(int(sys.argv[2])), {}
folder.mkdir()
for i in range(3):  # 12 layers each, every fourth in bfloat16; embeddings of 131 MB in the first
    w = {} if i else {"embed.weight": rng.standard_normal((32_000, 1024), np.float32)}
    for j in range(12 * i, 12 * i + 12):
        for k, rows in zip("qkvoabc", 4 * [1024] + 3 * [4096]):
            x = rng.standard_normal((rows, 1024), np.float32)
            w[f"layers.{j}.{k}.weight"] = x if j % 4 else x.astype(ml_dtypes.bfloat16)
    save_file(w, folder / f"model-{i}.safetensors")
    shards |= dict.fromkeys(w, f"model-{i}.safetensors")
(folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
"""
LOAD = """
import ml_dtypes, numpy as np, pathlib, sys
from safetensors.numpy import load_file, save_file
load = lambda y: {x.name: load_file(x) for x in pathlib.Path(y).glob("*.safetensors")}
w0, w = map(load, sys.argv[1:3])
f32, pairs = np.float32, [(a, w0[s][n], s, n) for s, x in w.items() for n, a in x.items()]
"""
COMPARE = """
for a, b, _, name in pairs:
    d = a.astype(f32) - b.astype(f32)
    rows, norm = np.abs(d).sum(1), np.linalg.norm(d)
    print(name, rows.max(), rows.mean(), norm, norm / np.linalg.norm(b.astype(f32)))
"""
PROJECT = """
for a, b, shard, name in pairs:
    d = a.astype(f32) - b.astype(f32)
    ratio = np.minimum(1, 500 / np.abs(d).sum(1, keepdims=True))
    w[shard][name] = (b.astype(f32) + ratio * d).astype(a.dtype)
pathlib.Path(sys.argv[3]).mkdir()
for shard, tensors in w.items():
    save_file(tensors, f"{sys.argv[3]}/{shard}")
"""
MIX = PROJECT.replace("np.minimum(1, 500 / np.abs(d).sum(1, keepdims=True))", "f32(0.5)")


def run(*words: str) -> tuple[float, float]:
    """Seconds, and gigabytes of the largest resident set."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def main() -> None:
    cases = {"compare": COMPARE, "project --radius=500": PROJECT, "interpolate --alpha=0.5": MIX}
    with tempfile.TemporaryDirectory() as top:
        files, out = [f"{top}/w0", f"{top}/w"], f"{top}/out"
        for seed, folder in enumerate(files):
            run("-c", MAKE, folder, str(seed))
        for command, script in 2 * list(cases.items()):
            name, *more = command.split()
            more += ["-o", out] * (name != "compare")
            ours = run("-m", "tpgm_jax.cli", name, *files, *more)
            shutil.rmtree(out, ignore_errors=True)
            plain = run("-c", LOAD + script, *files, out)
            shutil.rmtree(out, ignore_errors=True)
            ratio, line = ours[0] / plain[0], "{:.1f} s and {:.2f} GB"
            print(f"{command}: {ratio:.2f} times;", line.format(*ours), "to", line.format(*plain))


if __name__ == "__main__":
    main()

"""Time and memory of the command line are bounded."""

import json
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_files import save, weights
from test_cli_hostile import array, packed, safetensors_bytes, tensor


@pytest.mark.slow
def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    # 64 tensors of 4 MB; both files together are 512 MB.
    tensor = np.random.default_rng(0).normal(size=(2**10, 2**10)).astype(np.float32)
    flat = {f"block_{i}/kernel": tensor for i in range(64)}
    path = save(tmp_path / "w.safetensors", flat)
    code = (
        "import resource, sys; from tpgm_jax.cli import main;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024;"
        "import safetensors; before = peak();"
        "assert main(['compare', *sys.argv[1:]]) == 0; compared = peak() - before;"
        "assert main(['project', *sys.argv[1:], '--radius', '1', '-o', sys.argv[1] + '.o']) == 0;"
        "print(compared, peak() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, path, path], capture_output=True, text=True, check=True
    )
    compared, projected = map(int, run.stdout.splitlines()[-1].split())
    # In MB: up to four tensors, and blocks of a million numbers in float64.
    assert compared < 4 * 4 + 6 * 8 + 10
    assert projected < 4 * 4 + 6 * 8 + 10


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--alpha", "--radius"])
def test_memory_does_not_grow_with_the_number_of_shapes(how, tmp_path):
    flat = {f"{i}/kernel": np.ones((1 + i, 2), np.float32) for i in range(300)}
    path = save(tmp_path / "w.safetensors", flat)
    code = (
        "import resource, sys; from tpgm_jax.cli import main;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024;"
        "import safetensors; before = peak();"
        "assert main(['project', *sys.argv[1:]]) == 0; print(peak() - before)"
    )
    args = [path, path, how, "0.5", "-o", tmp_path / "out"]
    run = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
    )
    assert int(run.stdout.splitlines()[-1]) < 30


# Runs `compare` on a file, and prints the seconds and megabytes that it took beyond the imports.
BOUNDED = """
import json, resource, sys, time
from tpgm_jax.cli import main
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
assert main(["compare", sys.argv[1], sys.argv[1], "--json"]) == 0
before, start = peak(), time.process_time()
code = main(["compare", sys.argv[2], sys.argv[2], "--json"])
print(json.dumps([code, time.process_time() - start, peak() - before]))
"""


def chunked_arrays(count):
    one = {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": array((2,))}}
    return packed({str(i): one for i in range(count)})


def deep_names(count):
    """Names with the most levels that are allowed, which differ at their ends."""
    name = "a/" * 95
    tensors = {f"{name}{i}": tensor(4 * i, 4 * i + 4, [1]) for i in range(count)}
    return safetensors_bytes(tensors, b"\0" * 4 * count)


def scales_and_integers(count):
    """A module with equally many scales and integers."""
    names = [f"w{i}_scale" for i in range(count)] + [f"q{i}" for i in range(count)]
    spans = [tensor(4 * i, 4 * i + 4, [1], "F32" if i < count else "I32") for i in range(2 * count)]
    return safetensors_bytes(dict(zip(names, spans, strict=True)), b"\0" * 8 * count)


def moments(count):
    """Names full of `mu`. Each `mu` may be a state of Adam."""
    tensors = {f"{i}/{'mu/' * 95}": tensor(4 * i, 4 * i + 4, [1]) for i in range(count)}
    return safetensors_bytes(tensors, b"\0" * 4 * count)


def long_path(count):
    """Many leaves whose names share a path of 80,000 characters."""
    tree = {str(i): 0 for i in range(count)}
    for _ in range(80):
        tree = {"a" * 1000: tree}
    return packed(tree)


WORK = {
    "6,000 arrays in chunks": (".msgpack", chunked_arrays(6_000)),
    "10,000 deep names": (".safetensors", deep_names(10_000)),
    "20,000 names full of mu": (".safetensors", moments(20_000)),
    "20,000 integers beside as many scales": (".safetensors", scales_and_integers(20_000)),
    "20,000 leaves under a long path": (".msgpack", long_path(20_000)),
    "a million empty maps": (".msgpack", packed({str(i): {} for i in range(10**6)})),
}


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "contents"), WORK.values(), ids=WORK)
def test_small_files_take_little_time_and_memory(suffix, contents, tmp_path):
    good = save(tmp_path / f"good{suffix}", weights(0))
    path = tmp_path / f"x{suffix}"
    path.write_bytes(contents)
    run = subprocess.run(
        [sys.executable, "-c", BOUNDED, good, path], capture_output=True, text=True, check=True
    )
    code, seconds, megabytes = json.loads(run.stdout.splitlines()[-1])
    assert code in (0, 2)
    assert seconds < 20
    assert megabytes < 300

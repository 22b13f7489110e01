"""Rows of tensors called `weight`."""

import numpy as np
from checkpoint_files import command, compared, save


def test_rows_of_gpt2_are_last_and_of_nanogpt_first(tmp_path, capsys):
    shapes = {"h.0.attn.c_attn": (2, 6), "h.0.attn.c_proj": (2, 2), "h.0.mlp.c_fc": (2, 8)}

    def measure(transposed, *args):
        w = {
            f"{k}.weight": np.arange(np.prod(s), dtype=np.float32).reshape(s[::transposed])
            for k, s in shapes.items()
        }
        zeros = {name: np.zeros_like(x) for name, x in w.items()}
        paths = [
            save(tmp_path / f"{transposed}{i}.safetensors", x) for i, x in enumerate((zeros, w))
        ]
        found = compared(capsys, *paths, *args)
        text = command(capsys, "compare", *paths, *args)[1]
        assert ("GPT-2's Conv1D" in text) == bool(found["outputs_last"])
        rows = {x["name"].removesuffix(".weight"): x["rows"] for x in found["tensors"]}
        return rows, [x["mars"]["largest"] for x in found["tensors"]]

    # [[0 1 2 3 4 5], [6 ... 11]]: the largest column is 5 + 11; [[0 1] [2 3]]: 1 + 3.
    assert measure(1) == ({key: [1] for key in shapes}, [16, 4, 22])
    # The same numbers with outputs first: [[0 1], ..., [10 11]].
    assert measure(-1) == ({key: [0] for key in shapes}, [21, 5, 29])
    rows, _ = measure(1, "--axes", ".*c_attn.weight=0")
    assert rows == {key: [1] for key in shapes} | {"h.0.attn.c_attn": [0]}
    assert measure(1, "--axes", ".*=0")[0] == {key: [0] for key in shapes}

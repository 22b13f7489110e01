"""The counts of `benchmarks/gpu_compile.py` in GPU programs, and its table."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu_compile, gpus, kernels
from benchmarks.gpu_compile import CASES, METHODS, Case

# One kernel of every kind that is counted differently.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%adam (p.1: f32[8,16], g.1: bf16[8,16], s.1: f32[]) -> (f32[8,16], bf16[8,16]) {
  %p.1 = f32[8,16]{1,0} parameter(0)
  %g.1 = bf16[8,16]{1,0} parameter(1)
  %s.1 = f32[] parameter(2)
  %wide = f32[8,16]{1,0} convert(%g.1)
  %many = f32[8,16]{1,0} broadcast(%s.1), dimensions={}
  %scaled = f32[8,16]{1,0} multiply(%wide, %many)
  %new = f32[8,16]{1,0} add(%p.1, %scaled)
  %narrow = bf16[8,16]{1,0} convert(%new)
  ROOT %pair = (f32[8,16]{1,0}, bf16[8,16]{1,0}) tuple(%new, %narrow)
}

%two_slices (p.2: f32[100], i.2: s32[]) -> f32[10] {
  %p.2 = f32[100]{0} parameter(0)
  %i.2 = s32[] parameter(1)
  %double = f32[100]{0} add(%p.2, %p.2)
  %first = f32[10]{0} slice(%double), slice={[0:10]}
  %other = f32[10]{0} dynamic-slice(%double, %i.2), dynamic_slice_sizes={10}
  %third = f32[10]{0} multiply(%first, %other)
  ROOT %fourth = f32[10]{0} add(%third, %first)
}

%slice_and_all (p.3: f32[100]) -> (f32[10], f32[100]) {
  %p.3 = f32[100]{0} parameter(0)
  %cut = f32[10]{0} slice(%p.3), slice={[0:10]}
  %all = f32[100]{0} negate(%p.3)
  ROOT %both = (f32[10]{0}, f32[100]{0}) tuple(%cut, %all)
}

%rows_of_reduction (p.4: f32[20,50]) -> f32[5] {
  %p.4 = f32[20,50]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %sums = f32[20]{0} reduce(%p.4, %zero), dimensions={1}, to_apply=%add
  ROOT %some = f32[5]{0} slice(%sums), slice={[0:5]}
}

%pick (p.5: f32[1000,8], i.5: s32[4,2]) -> f32[4] {
  %p.5 = f32[1000,8]{1,0} parameter(0)
  %i.5 = s32[4,2]{1,0} parameter(1)
  %taken = f32[4]{0} gather(%p.5, %i.5), offset_dims={}, slice_sizes={1,1}
  ROOT %same = f32[4]{0} negate(%taken)
}

%write_layer (p.6: f32[24,100], u.6: f32[100], i.6: s32[]) -> f32[2400] {
  %p.6 = f32[24,100]{1,0} parameter(0)
  %u.6 = f32[100]{0} parameter(1)
  %i.6 = s32[] parameter(2)
  %zero.6 = s32[] constant(0)
  %row.6 = f32[1,100]{1,0} bitcast(%u.6)
  %put.6 = f32[24,100]{1,0} dynamic-update-slice(%p.6, %row.6, %i.6, %zero.6)
  ROOT %flat.6 = f32[2400]{0} bitcast(%put.6)
}

%write_to_fresh (u.7: f32[100]) -> f32[24,100] {
  %u.7 = f32[100]{0} parameter(0)
  %zero.7 = f32[] constant(0)
  %i.7 = s32[] constant(3)
  %zeros.7 = f32[24,100]{1,0} broadcast(%zero.7), dimensions={}
  %row.7 = f32[1,100]{1,0} bitcast(%u.7)
  ROOT %put.7 = f32[24,100]{1,0} dynamic-update-slice(%zeros.7, %row.7, %i.7, %i.7)
}

%body (t.1: (s32[], f32[100])) -> (s32[], f32[100]) {
  %t.1 = (s32[], f32[100]{0}) parameter(0)
  %i.8 = s32[] get-tuple-element(%t.1), index=0
  %v.8 = f32[100]{0} get-tuple-element(%t.1), index=1
  %c.8 = f32[100]{0} copy(%v.8)
  ROOT %t.2 = (s32[], f32[100]{0}) tuple(%i.8, %c.8)
}

%condition (t.3: (s32[], f32[100])) -> pred[] {
  %t.3 = (s32[], f32[100]{0}) parameter(0)
  %i.9 = s32[] get-tuple-element(%t.3), index=0
  %n.9 = s32[] constant(7)
  ROOT %less = pred[] compare(%i.9, %n.9), direction=LT
}

%outer_body (t.6: (s32[], f32[100])) -> (s32[], f32[100]) {
  %t.6 = (s32[], f32[100]{0}) parameter(0)
  ROOT %inner = (s32[], f32[100]{0}) while(%t.6), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}}
}

%outer_condition (t.7: (s32[], f32[100])) -> pred[] {
  %t.7 = (s32[], f32[100]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%command_buffer (v.9: f32[100]) -> f32[100] {
  %v.9 = f32[100]{0} parameter(0)
  ROOT %called = f32[100]{0} copy(%v.9)
}

%asynchronous (v.10: f32[100]) -> f32[100] {
  %v.10 = f32[100]{0} parameter(0)
  ROOT %wrapped = f32[100]{0} copy(%v.10)
}

%small_branch (t.4: f32[100]) -> f32[100] {
  %t.4 = f32[100]{0} parameter(0)
  %one.4 = f32[] constant(1)
  ROOT %ones = f32[100]{0} broadcast(%one.4), dimensions={}
}

%large_branch (t.5: f32[100]) -> f32[100] {
  %t.5 = f32[100]{0} parameter(0)
  ROOT %c.5 = f32[100]{0} copy(%t.5)
}

ENTRY %main (w: f32[8,16], g: bf16[8,16], v: f32[100]) -> f32[8,16] {
  %w = f32[8,16]{1,0} parameter(0), metadata={op_name="params[\\'w\\']"}
  %g = bf16[8,16]{1,0} parameter(1)
  %v = f32[100]{0} parameter(2)
  %m = f32[20,50]{1,0} parameter(3)
  %e = f32[1000,8]{1,0} parameter(4)
  %stack = f32[24,100]{1,0} parameter(5)
  %rate = f32[] constant(0.1)
  %i = s32[] constant(4)
  %index = s32[4,2]{1,0} constant({ {1, 0}, {2, 1}, {3, 2}, {4, 3} })
  %k.1 = (f32[8,16]{1,0}, bf16[8,16]{1,0}) fusion(%w, %g, %rate), kind=kLoop, calls=%adam
  %new_w = f32[8,16]{1,0} get-tuple-element(%k.1), index=0
  %flat = f32[128]{0} bitcast(%new_w)
  %k.2 = f32[10]{0} fusion(%v, %i), kind=kLoop, calls=%two_slices
  %k.3 = (f32[10]{0}, f32[100]{0}) fusion(%v), kind=kLoop, calls=%slice_and_all
  %k.4 = f32[5]{0} fusion(%m), kind=kInput, calls=%rows_of_reduction
  %k.5 = f32[4]{0} fusion(%e, %index), kind=kLoop, calls=%pick
  %k.6 = f32[2400]{0} fusion(%stack, %v, %i), kind=kLoop, calls=%write_layer
  %k.7 = f32[24,100]{1,0} fusion(%v), kind=kLoop, calls=%write_to_fresh
  %k.8 = (f32[20,20]{1,0}, s8[4194304]{0}) custom-call(%m, %m), \
custom_call_target="__cublas$lt$matmul"
  %k.9 = f32[10]{0} dynamic-slice(%v, %i), dynamic_slice_sizes={10}
  %k.10 = f32[1000,8]{1,0} scatter(%e, %index, %k.5), to_apply=%add
  %k.11 = (f32[100]{0:S(5)}, f32[100]{0}, u32[]) copy-start(%v)
  %done = f32[100]{0:S(5)} copy-done(%k.11)
  %k.12 = (f32[4]{0}, s8[8,8]{1,0}) custom-call(%v), custom_call_target="quantize"
  %k.13 = s8[64]{0} custom-call(%v), custom_call_target="quantize"
  %call.1 = f32[100]{0} call(%v), to_apply=%command_buffer
  %start = ((f32[100]{0}), f32[100]{0}, u32[]) async-start(%v), calls=%asynchronous
  %end = f32[100]{0} async-done(%start)
  %t = (s32[], f32[100]{0}) tuple(%i, %v)
  %loop = (s32[], f32[100]{0}) while(%t), condition=%outer_condition, body=%outer_body, \
backend_config={"known_trip_count":{"n":"3"}}
  %branch = f32[100]{0} conditional(%i, %v, %v), branch_computations={%small_branch, %large_branch}
  ROOT %out = f32[8,16]{1,0} add(%w, %w)
}
"""

# Bytes read and written by one run, and runs.
BY_HAND = {
    # A float32 and a bfloat16 matrix and a scalar in, the same matrices out.
    "k.1": (128 * 4 + 128 * 2 + 4, 128 * 4 + 128 * 2, 1),
    # Two slices of 10 elements, where one has two readers, and an index.
    "k.2": (2 * 10 * 4 + 4, 10 * 4, 1),
    # The kernel reads the slice anyway.
    "k.3": (100 * 4, 110 * 4, 1),
    # Five of twenty rows are summed.
    "k.4": (5 * 50 * 4, 5 * 4, 1),
    # Four numbers of a matrix, and two indices for each.
    "k.5": (4 * 4 + 4 * 2 * 4, 4 * 4, 1),
    # One of 24 layers is written in place; the others are not touched.
    "k.6": (100 * 4 + 4, 100 * 4, 1),
    # The target is made by the kernel itself, so all of it is written.
    "k.7": (100 * 4, 24 * 100 * 4, 1),
    # Both factors are the same array. The scratch memory does not count.
    "k.8": (20 * 50 * 4, 20 * 20 * 4, 1),
    "k.9": (10 * 4 + 4, 10 * 4, 1),
    # Four old numbers, four updates, and two indices for each.
    "k.10": (2 * 4 * 4 + 4 * 2 * 4, 4 * 4, 1),
    # The type lists the destination, the source and a context.
    "k.11": (100 * 4, 100 * 4, 1),
    # These results of library calls are not scratch memory.
    "k.12": (100 * 4, 4 * 4 + 8 * 8, 1),
    "k.13": (100 * 4, 64, 1),
    "called": (100 * 4, 100 * 4, 1),
    "wrapped": (100 * 4, 100 * 4, 1),
    # The inner loop, body and condition, runs seven times in each of three runs.
    "c.8": (100 * 4, 100 * 4, 21),
    "less": (2 * 4, 1, 21),
    # Of the conditional, the branch that moves more.
    "c.5": (100 * 4, 100 * 4, 1),
    "out": (128 * 4, 128 * 4, 1),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_bytes_of_a_kernel_equal_a_count_by_hand(name):
    (found,) = [x for x in kernels.kernels(PROGRAM) if x.name == name]
    assert (found.read, found.written, found.runs) == BY_HAND[name]


def test_only_instructions_that_launch_something_are_kernels():
    found = kernels.kernels(PROGRAM)
    assert sorted(x.name for x in found) == sorted(BY_HAND)
    assert kernels.launches(found) == sum(runs for _, _, runs in BY_HAND.values())
    assert kernels.traffic(found) == sum(n * (i + o) for i, o, n in BY_HAND.values())


def test_the_held_out_loss_of_the_optimizer_step_has_the_given_gradient():
    params, slopes = {"w": jnp.ones(3)}, {"w": jnp.arange(3.0)}
    grads = jax.grad(lambda params: 2 * gpu_compile.linear(params, slopes))(params)
    np.testing.assert_array_equal(grads["w"], [0, 2, 4])


def row(case, **numbers):
    blank = {x: "0" for x in gpu_compile.COLUMNS} | {"parameters": "250"}
    which = dict(zip(gpu_compile.WHICH, case, strict=True))
    return blank | which | {x: str(y) for x, y in numbers.items()}


def test_rows_are_found_again_and_compared_with_their_base_optimizer(tmp_path):
    path = tmp_path / "table.csv"
    assert gpu_compile.known_rows(path) == {}
    sgd, ours = (Case("h100", "vit_b16", "optimizer", method) for method in ("sgd", "ftp(sgd)"))
    rows = {
        sgd: row(sgd, kernels=2, read_bytes=3000, written_bytes=2000),
        ours: row(ours, kernels=9, read_bytes=9000, written_bytes=6500, temporary_bytes=500),
    }
    gpu_compile.write(rows.values(), gpu_compile.COLUMNS, path)
    assert gpu_compile.known_rows(path) == rows
    *_, line = gpu_compile.table(rows, [ours]).splitlines()
    assert line == "| `vit_b16` | ftp(sgd) | 9 | 15.50 | 3.10 | 0.50 | 0 |"


def test_every_case_has_the_row_that_it_is_compared_with():
    assert len(set(CASES)) == len(CASES)
    for case in CASES:
        assert case._replace(method=METHODS[case.method][0]) in CASES


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="the plugin for NVIDIA GPUs is not installed: `make bench-gpu` does",
)
@pytest.mark.parametrize("gpu", gpus.DEVICES)
def test_a_step_is_compiled_for_a_gpu(gpu, monkeypatch):
    monkeypatch.setitem(gpu_compile.trees.PRESETS, "small_leaves", lambda: {"kernel": (256, 256)})
    case = Case(gpu, "small_leaves", "optimizer", "adamw")
    found = gpu_compile.measure(case, {}, None)
    size = 4 * found["parameters"]
    # AdamW reads gradient, parameters and two moments, and writes the last three. The rest are
    # scalars, such as the count of steps.
    assert 7 * size <= gpu_compile.moved(found) < 7 * size + 100
    assert gpu_compile.measure(case, found, None) == found
    memory = gpu_compile.memory_of(gpu_compile.lower(case).compile())
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 100

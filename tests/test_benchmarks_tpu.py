"""How `benchmarks/tpu_compile.py` reads compiled programs and compares them with AdamW's."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import tpgm_jax
from benchmarks import pod, tpu_compile, trees
from benchmarks.hlo import collectives, parts, size
from benchmarks.pod import Placement

# Every form of collective that is counted: in nested loops, one with a known trip count and one
# with only a comparison; a transfer spread over fusions; asynchronous pairs; a scatter in a fusion.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0:T(128)})->f32[8]{0}}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%start.1 (p: bf16[2,128]) -> bf16[8,128] {
  %p = bf16[2,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, dimensions={0}
}

%done.1 (p.1: bf16[2,128]) -> bf16[8,128] {
  ROOT %g.2 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.1), channel_id=7, dimensions={0}
}

%all-reduce-scatter.4 (q: f32[64]) -> f32[16] {
  %q = f32[64]{0} parameter(0)
  %all.1 = f32[64]{0:T(128)} all-reduce(%q), channel_id=3, to_apply=%add
  ROOT %slice = f32[16]{0} dynamic-slice(%all.1, %i), dynamic_slice_sizes={16}
}

%inner_condition (c: (s32[], f32[])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

%inner (c.1: (s32[], f32[])) -> (s32[], f32[]) {
  %f.1 = bf16[8,128]{1,0} fusion(%x.1), kind=kCustom, calls=%start.1
  %f.2 = bf16[8,128]{1,0} fusion(%x.1), kind=kCustom, calls=%done.1
  %f.3 = f32[16]{0} fusion(%x.2), kind=kCustom, calls=%all-reduce-scatter.4
}

%outer_condition (d: (s32[], f32[])) -> pred[] {
  ROOT %lt.1 = pred[] compare(%i.2, %n), direction=LT
}

%outer (d.1: (s32[], f32[])) -> (s32[], f32[]) {
  %w.1 = (s32[], f32[]) while(%t.1), condition=%inner_condition, body=%inner
  %m.1 = f32[3]{0} all-reduce(%x.3), channel_id=11, replica_groups=[4,2]<=[8], to_apply=%add
}

ENTRY %main (a: f32[8], b: f32[4,2]) -> f32[8] {
  %a = f32[8]{0:T(128)} parameter(0), metadata={op_name="all-reduce(of nothing)"}
  %b = f32[4,2]{1,0:T(8,128)} parameter(1)
  %w.2 = (s32[], f32[]) while(%t.2), condition=%outer_condition, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
  %both = (f32[8]{0:T(128)}, /*index=1*/f32[4,2]{1,0:T(8,128)}) all-reduce(%a, %b), channel_id=1, \
replica_groups=mesh['x'=4,'y'=2] {'x'}, use_global_device_ids=true, to_apply=%add, \
metadata={op_name="jit(step)/reduce_sum" stack_frame_id=6}
  %s.1 = (f32[8]{0}, f32[32]{0}) all-gather-start(%a), channel_id=2, dimensions={0}
  %s.2 = f32[32]{0} all-gather-done(%s.1)
  %s.3 = (pred[7]{0}, pred[7]{0}, u32[], u32[]) collective-permute-start(%flags), channel_id=4
  %s.4 = pred[7]{0} collective-permute-done(%s.3)
  %s.5 = (f32[8]{0}, f32[4,2]{1,0}) all-reduce-start(%a, %b), channel_id=5, to_apply=%add
  %s.6 = (f32[8]{0}, f32[4,2]{1,0}) all-reduce-done(%s.5)
  %s.7 = f32[2]{0} reduce-scatter(%a), channel_id=6, dimensions={0}, to_apply=%add
}
"""


def test_each_collective_is_counted_once_with_its_bytes_and_runs():
    found = [(x.kind, x.bytes, x.runs) for x in collectives(PROGRAM)]
    assert found == [
        ("all-gather", 8 * 128 * 2, 15),
        ("reduce-scatter", 64 * 4, 15),
        ("all-reduce", 3 * 4, 3),
        ("all-reduce", (8 + 4 * 2) * 4, 1),
        ("all-gather", 32 * 4, 1),
        ("collective-permute", 7, 1),
        ("all-reduce", (8 + 4 * 2) * 4, 1),
        ("reduce-scatter", 8 * 4, 1),
    ]


def test_a_collective_has_its_operation_name_and_replica_groups():
    one = next(x for x in collectives(PROGRAM) if x.name)
    assert (one.name, one.replicas) == ("jit(step)/reduce_sum", "mesh['x'=4,'y'=2] {'x'}")


def test_tuple_types_are_split_into_their_elements():
    type_ = "(f32[2,3]{1,0:T(8,128)}, (bf16[], s4[3]), /*index=2*/f8e4m3fn[5], token[])"
    assert [size(x) for x in parts(type_)] == [24, 2 + 2, 5, 0]
    assert parts("f32[2]{0}") == ["f32[2]{0}"]


def test_collectives_of_a_compiled_program_are_read():
    mesh = jax.make_mesh((4, 2), ("x", "y"), (AxisType.Auto,) * 2, devices=jax.devices("cpu")[:8])

    def struct(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    def step(weights, inputs):
        # Four devices hold parts of every sum.
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), inputs, weights)[0].sum()

    given = struct((5, 64, 64), P(None, "x", None)), struct((16, 64), P(None, "x"))
    text = jax.jit(step).lower(*given).compile().as_text() or ""
    found = [x for x in collectives(text) if x.runs > 1]
    assert [x.kind for x in found] == ["all-reduce"]
    assert [(x.bytes, x.runs) for x in found] == [(16 * 64 * 4, 5)]


def test_every_case_divides_its_parameters_evenly_over_its_devices():
    for topology, models in tpu_compile.SETTINGS.items():
        chips = math.prod(int(n) for n in topology.partition(":")[2].split("x"))
        for name, placement in models:
            axes = {"fsdp": placement.fsdp, "tensor": placement.tensor}
            assert math.prod(axes.values()) == chips
            shapes = trees.scanned_decoder(*pod.SIZES[name])
            count = sum(map(math.prod, shapes.values()))
            assert round(count / 1e9, 1 if count < 1e9 else 0) == float(name.removesuffix("B"))
            for path, shape in shapes.items():
                spec = placement.spec(path)
                assert all(n % axes.get(x, 1) == 0 for n, x in zip(shape, spec, strict=False))
                # Large parameters are sharded over all devices.
                assert (set(spec) >= set(axes)) == (math.prod(shape[-2:]) > 1e6), path


def test_kernels_that_write_to_the_residual_stream_have_the_transposed_layout():
    up, down = "layers/mlp/up/kernel", "layers/mlp/down/kernel"
    assert Placement(4, 2).spec(up) == P(None, "fsdp", "tensor")
    assert Placement(4, 2).spec(down) == P(None, "tensor", "fsdp")
    assert Placement(4, 2, alike=True).spec(down) == P(None, "fsdp", "tensor")


def test_a_state_has_the_shardings_of_its_parameters():
    auto = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), auto, devices=jax.devices("cpu")[:8])
    params = {"kernel": pod.struct((8, 4), jnp.float32, mesh, P("fsdp", "tensor"))}
    state = pod.state_of(tpgm_jax.ftp(optax.adamw(1e-4)), params, mesh)
    assert state.anchor["kernel"].sharding.spec == P("fsdp", "tensor")
    assert [x.sharding.spec for x in (state.radii, *state.row_norms)] == [P(), P()]


def row(case, **numbers):
    blank = {x: 0 for x in tpu_compile.COLUMNS} | {"gathers": "", "parameter_bytes": 1000}
    return {x: str(y) for x, y in (blank | case.which | numbers).items()}


def test_a_row_is_compared_with_the_row_of_adamw():
    case = tpu_compile.CASES[1]
    assert case.method == "ftp(adamw)"
    # A device holds 2048 * 2048 / 256 numbers of a layer's smallest kernel, in bfloat16 32 KiB.
    # Smaller gathers do not count.
    assert str(case).startswith("v5e:16x16/64x4/1B")
    base = row(
        case, argument_bytes=4008, gathers="3x32768 1x65536", temporary_bytes=70, accessed_bytes=400
    )
    ours = row(
        case,
        argument_bytes=6028,
        bookkeeping_bytes=20,
        gathers="9x32767 1x32768 2x65536",
        temporary_bytes=320,
        accessed_bytes=900,
        **{"all-reduces": 5, "all-gathers": 0},
    )
    found = tpu_compile.judged(ours, base)
    assert found == {
        "collectives": 5,
        "gathers": 1,
        "temporaries": 0.25,
        "peak": 0.0,
        "unexplained": 0,
        "traffic": 2.25,
    }
    assert tpu_compile.missed(found) == ["collectives", "gathers"]
    assert tpu_compile.missed(found | {"temporaries": 0.26, "unexplained": -4}) == [
        "collectives",
        "gathers",
        "temporaries",
        "arguments",
    ]
    assert not tpu_compile.missed(tpu_compile.judged(base | {"argument_bytes": "6008"}, base))


def test_rows_are_read_back_from_the_table(tmp_path):
    path, case = tmp_path / "table.csv", tpu_compile.CASES[2]
    assert tpu_compile.known(path) == {}
    tpu_compile.write([row(case, gathers="1x2")], tpu_compile.COLUMNS, path)
    assert tpu_compile.known(path) == {case: row(case, gathers="1x2")}


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: `make bench-tpu` does",
)
def test_a_step_is_compiled_for_a_tpu(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setitem(pod.SIZES, "tiny", (256, 2))
    case = tpu_compile.Case("v5p:2x2x2", "tiny", Placement(4, 2, alike=True), "optimizer", "adamw")
    base, ours = (
        tpu_compile.measure(case._replace(method=method), None)
        for method in ("adamw", "ftp(adamw), compact")
    )
    found = tpu_compile.judged(ours, base)
    assert found["collectives"] <= 4
    assert (found["gathers"], found["unexplained"]) == (0, 0)
    assert 1 < found["traffic"] < 4

"""What Python packs is what a kernel reads: the structs of the kernels' texts, field by field."""

from __future__ import annotations

import ctypes
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from calls import attention_call

import flextrace as flex
from flextrace.cache import LoadError
from flextrace.kernels import cpu, metal
from flextrace.kernels.cpu import generate, launch
from flextrace.kernels.cpu import params as in_cpp
from flextrace.kernels.int8_types import QKQuant, Smoothing
from flextrace.kernels.metal import params as in_metal
from flextrace.kernels.template.assemble import assemble
from flextrace.kernels.toolchain import find_compiler

CPU, METAL = Path(cpu.__file__).parent, Path(metal.__file__).parent
CPP_TYPES = {"int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32, "float": ctypes.c_float, "double": ctypes.c_double}


def structs_of(folder: Path, *patterns: str) -> dict[str, list[tuple[str, str]]]:
    """Struct -> its fields, (declarator, type), of all files; methods and comments left out."""
    found = {}
    for file in sorted(file for pattern in patterns for file in folder.rglob(pattern)):
        text = re.sub(r"//[^\n]*", "", file.read_text(encoding="ascii"))
        for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", text, re.MULTILINE | re.DOTALL):
            body = re.sub(r"\)\([^()]*\)", ")()", body)  # of a function pointer
            while "{" in body:
                body = re.sub(r"\{[^{}]*\}", ";", body)
            parts = [part for part in body.replace("const ", "").split(";") if part.strip()]
            declared = [part.split(None, 1) for part in parts if not re.search(r"\w\(", part)]
            found[name] = [(entry.strip(), kind) for kind, rest in declared for entry in rest.split(",")]
    return found


CPP_STRUCTS = structs_of(CPU, "*.h", "*.cpp")
METAL_STRUCTS = structs_of(METAL, "*.h", "*.metal")


def cpp_type(kind: str, declarator: str) -> tuple[str, Any]:
    """A field's name, and what mirrors its type."""
    name, _, length = declarator.removesuffix("]").partition("[")
    if "*" in kind or "*" in name or "(" in name:  # a pointer, of a function too
        return re.findall(r"\w+", name)[0], ctypes.c_void_p
    mirrored = CPP_TYPES.get(kind) or getattr(in_cpp, kind)
    return name, mirrored * int(length) if length else mirrored


MIRRORED = [each for each in vars(in_cpp).values() if isinstance(each, type) and issubclass(each, ctypes.Structure)]


@pytest.mark.parametrize("mirror", MIRRORED, ids=lambda mirror: mirror.__name__)
def test_the_cpu_s_structs_are_those_of_its_files(mirror: type[ctypes.Structure]) -> None:
    wanted = [cpp_type(kind, declarator) for declarator, kind in CPP_STRUCTS[mirror.__name__]]
    fields = [(name, kind) for name, kind, *_ in mirror._fields_]
    assert [name for name, _ in fields] == [name for name, _ in wanted]
    for (name, ours), (_, theirs) in zip(fields, wanted, strict=True):
        assert ours == theirs or (ours._type_, ours._length_) == (theirs._type_, theirs._length_), name
    assert in_cpp.packed(mirror).size == ctypes.sizeof(mirror), "no padding"


def test_every_struct_that_a_kernel_takes_is_mirrored() -> None:
    taken = {}
    for file in CPU.rglob("*.cpp"):
        found = re.search(r"^TAKES\((\w+)\)$", file.read_text(encoding="ascii"), re.MULTILINE)
        if found is not None:
            taken[file.name] = found[1]
    files = {kernel: Path(generate.FILES.get(kernel, f"{kernel}.cpp")).name for kernel in in_cpp.TAKEN}
    assert taken == {files[kernel]: mirror.__name__ for kernel, mirror in in_cpp.TAKEN.items()}


def test_a_kernel_that_takes_another_struct_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one would be that an older flextrace left in the cache, if its key did not tell."""

    class Longer(ctypes.Structure):
        _fields_ = (*in_cpp.Scale._fields_, ("more", ctypes.c_int64))

    monkeypatch.setitem(in_cpp.TAKEN, "scale", Longer)
    with pytest.raises(LoadError, match=r"the compiled scale kernel takes 184 bytes of parameters, and .* packs 192"):
        cpu.CpuBackend().stages().scale(mx.ones((2, 3)), 2.0)


def params_of(call: Any, counts: Any = None) -> in_cpp.Params:
    """What a kernel is given for a call."""
    given: list[bytes] = []
    launch.Kernel(lambda packed, _: given.append(packed) or 0).run(call, counts)
    return in_cpp.Params.from_buffer_copy(given[0])


def test_the_values_of_a_call_are_in_the_fields_of_their_names() -> None:
    """Params is packed by position."""
    q, k, v = (mx.zeros(shape) for shape in ((2, 4, 5, 6), (1, 2, 7, 6), (1, 2, 7, 9)))
    blocks = flex.create_block_mask(flex.mods.causal, 2, 4, 5, 7, BLOCK_SIZE=(2, 3), offset=0).blocks
    call = attention_call(q, k, v, 0.5, blocks=blocks, want_lse=True, want_max=True, threads=3)
    counts = np.zeros(4, np.int64)
    params = params_of(call, counts)
    sizes = {"batch": 2, "query_heads": 4, "kv_heads": 2, "q_len": 5, "kv_len": 7, "head_dim": 6, "value_dim": 9}
    mask = {"has_block_mask": 1, "mask_batch": 2, "mask_heads": 4, "mask_rows": 3, "q_block": 2, "kv_block": 3}
    plain = {"groups": 1, "means_batch": 1, "average_keys": 0, "q_mean_rows": 0, "q_scale_rows": 1, "k_scale_rows": 1}
    for name, value in {**sizes, **mask, **plain, "scale": 0.5, "dtype": 0}.items():
        assert getattr(params, name) == value, name
    assert blocks is not None
    runs = ("offsets", "first", "end", "state")
    assert [getattr(params, f"run_{name}") for name in runs] == [getattr(blocks, name).ctypes.data for name in runs]
    assert (params.caller.max_threads, params.caller.host) == (3, launch.HOST_AT)
    assert params.tile_counts == counts.ctypes.data and params.arrays is params.numbers is params.k_scales is None


def test_the_values_of_int8_are_in_the_fields_of_their_names() -> None:
    q, k, v = mx.zeros((2, 4, 5, 6)), mx.zeros((1, 2, 7, 6), mx.int8), mx.zeros((1, 2, 7, 9), mx.int8)
    groups = (mx.zeros((1, 7), mx.int32), mx.zeros((2, 5), mx.int32))
    smoothing = Smoothing(mx.zeros((1, 2, 3, 6)), *groups, add_back=True)
    scales = {"k_scales": mx.ones((1, 2, 7)), "v_scales": mx.ones((1, 2, 7)), "v_means": mx.ones((1, 2, 1, 9))}
    quant = QKQuant("block", smooth_q=True, q_block=16, k_block=8)
    params = params_of(attention_call(q, k, v, 0.5, quant=quant, smoothing=smoothing, **scales))
    for name, x in {"means": smoothing.means, "key_groups": groups[0], "row_groups": groups[1]}.items():
        assert getattr(params, name) == launch.locate(x)[0], name
    sizes = {"groups": 3, "means_batch": 1, "key_groups_batch": 1, "row_groups_batch": 2}
    ways = {"average_keys": 0, "add_back": 1, "q_mean_rows": 16, "q_scale_rows": 16, "k_scale_rows": 8}
    assert {name: getattr(params, name) for name in {**sizes, **ways}} == {**sizes, **ways}


# ---- where arrays lie ---------------------------------------------------------------------------------------------

FIND = """
extern "C" __attribute__((visibility("default")))
int find(const Params* given, void* arrays, Params* found, Array* to) {
  Located located(*given, given + 1, arrays);
  *found = located.params;
  for (int slot = 0; slot < ARRAYS; slot++) to[slot] = located.params.arrays[slot];
  return located.status;
}
"""
CAPTURED = 3


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(call, results) -> status, Params as located.h completes it, the captured arrays and the packed numbers."""
    folder = tmp_path_factory.mktemp("located")
    text = assemble(CPU, "attention/located.h", {})
    assert text.count("constexpr int ARRAYS = 0;") == 1
    text = text.replace("constexpr int ARRAYS = 0;", f"constexpr int ARRAYS = {CAPTURED};")
    (folder / "find.cpp").write_text("#include <stdlib.h>\n" + text + FIND, encoding="ascii")
    compiler = find_compiler()
    assert compiler is not None
    compiler.build(folder / "find.cpp", folder / "find.so")
    entry = ctypes.PyDLL(str(folder / "find.so")).find
    entry.argtypes = [ctypes.c_char_p, ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p]

    def found(call: Any, results: Any = (None, None, None), arrays: Any = None) -> Any:
        params, captured = in_cpp.Params(), (in_cpp.Array * CAPTURED)()
        given = launch.packed_params(call, None, None)
        of_call = launch.arrays_of(call, results) + (mx.zeros(()),) * (CAPTURED - len(call.mods.arrays))
        status = entry(
            given, of_call if arrays is None else arrays, ctypes.addressof(params), ctypes.addressof(captured)
        )
        return status, params, captured

    return found


def test_a_kernel_finds_arrays_where_python_does(find: Any) -> None:
    """Views, broadcasts, other types, turned round, read-only, without axes, and none."""
    cache = mx.random.normal((1, 2, 64, 8))
    q, k, v = mx.random.normal((2, 5, 4, 8)).swapaxes(1, 2), cache[:, :, 3:10], cache[:, :, 20:27].astype(mx.float32)
    turned = np.arange(24, dtype=np.float16).reshape(2, 3, 4)[::-1, :, 1:3].transpose(2, 0, 1)
    fixed = np.arange(5, dtype=np.int64)
    fixed.flags.writeable = False
    half = mx.arange(12).reshape(3, 4).astype(mx.bfloat16)[:, ::2]

    @flex.score_mod
    def mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + turned[0, b, 1] + fixed[q_idx] + half[0, 1]

    call = attention_call(q, k, v, 0.5, mod.bind())
    mx.eval(*call.arrays)
    out, lse = mx.zeros((2, 4, 5, 8)), mx.zeros((2, 4, 5))
    mx.eval(out, lse)
    status, params, captured = find(call, (out, lse, None))
    assert status == 0
    for name, x in {"q": q, "k": k, "v": v}.items():
        at, strides = launch.locate(x)
        strides = strides if x is q else (0, *strides[1:])  # one batch of keys serves both
        assert (getattr(params, name), (*getattr(params, f"{name}_strides"),)) == (at, strides), name
    assert (params.out, params.lse, params.max_scores) == (launch.locate(out)[0], launch.locate(lse)[0], None)
    assert params.k_scales is params.v_scales is params.v_means is None
    assert len(call.mods.arrays) == CAPTURED
    for x, array in zip(call.mods.arrays, captured, strict=True):
        at, strides = launch.locate(x)
        assert (array.data, array.ndim) == (at, x.ndim)
        assert [*array.shape] == [*x.shape] + [0] * (8 - x.ndim)
        assert [*array.strides] == [*strides] + [0] * (8 - x.ndim)


def test_a_kernel_finds_the_scales_of_int8(find: Any) -> None:
    q, k, v = mx.zeros((2, 4, 5, 6)), mx.zeros((1, 2, 7, 6), mx.int8), mx.zeros((1, 2, 7, 9), mx.int8)
    scales = {"k_scales": mx.ones((1, 2, 7)), "v_scales": mx.ones((1, 2, 7)), "v_means": mx.ones((1, 2, 1, 9))}
    call = attention_call(q, k, v, 0.5, quant=QKQuant("row", smooth_k=False), **scales)
    mx.eval(*call.arrays)
    _, params, _ = find(call)
    assert [getattr(params, name) for name in scales] == [launch.locate(x)[0] for x in scales.values()]
    assert [*params.k_scale_strides] == [*params.v_scale_strides] == [0, 7, 1]
    assert [*params.v_mean_strides] == [0, 9, 9, 1]
    k, v = (mx.zeros((2, 2, 7, width), mx.int8) for width in (6, 9))
    scales = {"k_scales": mx.ones((2, 2, 7)), "v_scales": mx.ones((2, 2, 7)), "v_means": mx.ones((2, 2, 1, 9))}
    call = call._replace(k=k, v=v, **scales)
    mx.eval(*call.arrays)
    _, params, _ = find(call)
    assert [params.k_strides[0], params.v_strides[0]] == [84, 126]
    assert [params.k_scale_strides[0], params.v_scale_strides[0], params.v_mean_strides[0]] == [14, 14, 18]


def test_what_cannot_be_read_in_place_is_said(find: Any) -> None:
    q = mx.zeros((1, 1, 4, 8))
    mx.eval(q)
    call = attention_call(q, q, q, 1.0)
    odd = mx.zeros((4 * 32 + 1,), mx.uint8)[1:].view(mx.float32).reshape(1, 1, 4, 8)
    mx.eval(odd)
    assert find(call)[0] == 0
    assert find(call._replace(k=odd))[0] == launch.UNALIGNED
    record = np.zeros(3, np.dtype([("first", "u1"), ("value", np.float32)]))["value"]
    packed = np.zeros(3, np.dtype([("value", np.float32), ("last", "u1")]))["value"]  # aligned, but for its strides
    whole = launch.arrays_of(call, (None,) * 3)
    for array in (record, packed):
        assert find(call, arrays=(*whole, array, q, q))[0] == launch.UNALIGNED
    one = np.lib.stride_tricks.as_strided(np.zeros(8, np.float32), (1, 3), (5, 8))
    assert find(call, arrays=(*whole, one, q, q))[0] == 0, "nobody takes a step along an axis of one"
    with pytest.raises(TypeError, match="bytes-like object is required"):
        find(call, arrays=(*whole, q, q, 3))
    with pytest.raises(IndexError):
        find(call, arrays=whole)


def test_captured_numbers_are_packed_by_their_types() -> None:
    """One beyond float32 is infinite, and the others stay what they are."""
    steps, factor, flag, huge, largest = 3, 0.5, True, -1e39, float(np.finfo(np.float32).max)

    @flex.score_mod
    def mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (score + steps + huge) * factor + largest if flag == (q_idx > 0) else score

    numbers = launch.packed_numbers(attention_call(*[mx.zeros((1, 1, 1, 1))] * 3, 1.0, mod.bind()).mods)
    assert len(numbers) == 4 * 5
    bound = mod.bind()
    for number, at, capture in zip(bound.numbers, range(0, 20, 4), bound.trace.numbers, strict=True):
        kind = np.float32 if capture.dtype == "float" else np.int32
        with np.errstate(over="ignore"):
            assert np.frombuffer(numbers[at : at + 4], kind)[0] == kind(number), capture.name


# ---- Metal --------------------------------------------------------------------------------------------------------


def named_tuples() -> Iterator[type[Any]]:
    yield from typing.get_args(in_metal.Params)


def test_metal_s_structs_are_those_of_its_files() -> None:
    wanted = {name: fields for name, fields in METAL_STRUCTS.items() if name.endswith("Params")}
    assert {mirror.__name__ for mirror in named_tuples()} == {*wanted}
    for mirror in named_tuples():
        kinds = {"int": int, "float": float}
        fields = [(name, kinds[kind]) for name, kind in wanted[mirror.__name__]]
        assert [*typing.get_type_hints(mirror).items()] == fields, mirror.__name__


def test_every_metal_struct_asserts_its_size() -> None:
    texts = [file.read_text(encoding="ascii") for file in METAL.rglob("*") if file.suffix in (".h", ".metal")]
    for mirror in named_tuples():
        size = rf"static_assert\(sizeof\({mirror.__name__}\) == 4 \* (\w+)"
        (words,) = [found[1] for text in texts if (found := re.search(size, text))]
        if not words.isdigit():
            (words,) = [found[1] for text in texts if (found := re.search(rf" int {words} = (\d+);", text))]
        assert int(words) == len(mirror._fields)


def test_floats_are_packed_by_their_bits() -> None:
    packed = in_metal.words(in_metal.ScaleParams(1, 2, 3, 0.5), in_metal.ShapeParams(4, 5, 6))
    assert packed == [1, 2, 3, 0x3F000000, 4, 5, 6]

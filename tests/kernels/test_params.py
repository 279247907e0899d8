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

CPU, METAL = Path(cpu.__file__).parent, Path(metal.__file__).parent
CPP_TYPES = {"int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32, "float": ctypes.c_float, "double": ctypes.c_double}


def structs_of(folder: Path, *patterns: str) -> dict[str, list[tuple[str, str]]]:
    """Struct -> its fields, (declarator, type), of all files; methods and comments left out."""
    found = {}
    for file in sorted(file for pattern in patterns for file in folder.rglob(pattern)):
        text = re.sub(r"//[^\n]*", "", file.read_text(encoding="ascii"))
        for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", text, re.MULTILINE | re.DOTALL):
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
    launch.Kernel(lambda packed: given.append(packed) or 0).run(call, counts)
    return in_cpp.Params.from_buffer_copy(given[0])


def test_the_values_of_a_call_are_in_the_fields_of_their_names() -> None:
    """Params is packed by position."""
    q, k, v = (mx.zeros(shape) for shape in ((2, 4, 5, 6), (1, 2, 7, 6), (1, 2, 7, 9)))
    blocks = flex.create_block_mask(flex.mods.causal, 2, 4, 5, 7, BLOCK_SIZE=(2, 3), offset=0).blocks
    call = attention_call(q, k, v, 0.5, blocks=blocks, want_lse=True, want_max=True, threads=3)
    counts = np.zeros(4, np.int64)
    params = params_of(call, counts)
    for name, x in {"q": q, "k": k, "v": v}.items():
        assert getattr(params, name) == launch.locate(x)[0], name
    assert len({params.out, params.lse, params.max_scores, None}) == 4
    assert [*params.q_strides] == [120, 30, 6, 1] and [*params.k_strides] == [0, 42, 6, 1]
    assert [*params.v_strides] == [0, 63, 9, 1]
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
    call = attention_call(q, k, v, 0.5, quant=quant, smoothing=smoothing, **scales)
    mx.eval(*scales.values())
    params = params_of(call)
    for name, x in {**scales, "means": smoothing.means, "key_groups": groups[0], "row_groups": groups[1]}.items():
        assert getattr(params, name) == launch.locate(x)[0], name
    sizes = {"groups": 3, "means_batch": 1, "key_groups_batch": 1, "row_groups_batch": 2}
    ways = {"average_keys": 0, "add_back": 1, "q_mean_rows": 16, "q_scale_rows": 16, "k_scale_rows": 8}
    assert {name: getattr(params, name) for name in {**sizes, **ways}} == {**sizes, **ways}
    assert [*params.k_scale_strides] == [*params.v_scale_strides] == [0, 7, 1]
    assert [*params.v_mean_strides] == [0, 9, 9, 1]


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

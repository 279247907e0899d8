"""What is passed in a mod's place, or under a wrong name: the error says what to write, and what it says works."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference

import flextrace as flex
from flextrace import mods
from flextrace.advice.keywords import OF_ATTENTION, OF_BLOCK_MASK, knows

Q = mx.random.normal((2, 3, 8, 16), key=mx.random.key(0))


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def attend(**arguments: Any) -> Any:
    return flex.flex_attention(**{"query": Q, "key": Q, "value": Q, **arguments})


def message(kind: type[Exception], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


# ---- arrays ------------------------------------------------------------------------------------------------------

SHAPES = [(8, 8), (3, 8, 8), (2, 3, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8), (2, 1, 1, 8), (1, 8)]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("shape", "kind"),
    [(s, k) for i, s in enumerate(SHAPES) for j, k in enumerate(("bool", "int", "float")) if (i + j) % 2 == 0],
)
def test_what_is_said_of_an_array_is_what_it_means(shape: tuple[int, ...], kind: str) -> None:
    """The line in the message, run, gives attention under the array as it broadcasts."""
    drawn = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    array = {"bool": drawn > -1, "int": (drawn > -1).astype(np.int32), "float": drawn}[kind]
    said = message(TypeError, lambda: attend(block_mask=mx.array(array)))
    argument, line = re.fullmatch(r".*, write (block_mask|score_mod)=(lambda .*)", said).groups()  # type: ignore[union-attr]
    assert argument == ("score_mod" if kind == "float" else "block_mask")
    assert said.startswith(f"block_mask takes a mask_mod function, not an mx.array of {kind}")
    written = reference_line(line, array)
    got = attend(**{argument: written})
    dense = np.broadcast_to(array, (2, 3, 8, 8))
    if kind == "float":
        expected = reference.attention(Q, Q, Q, score_mod=lambda s, b, h, q, k: s + dense[b, h, q, k])[0]
    else:
        expected = reference.attention(Q, Q, Q, mask_mod=lambda b, h, q, k: dense[b, h, q, k] != 0)[0]
    np.testing.assert_allclose(np.array(got), expected, atol=2e-5)


def reference_line(line: str, array: Any) -> Any:
    """The function that a line of a message makes, with a source that the tracer finds."""
    import linecache

    text = f"made = {line}\n"
    linecache.cache["<line of a message>"] = (len(text), None, [text], "<line of a message>")
    names = {"mask": mx.array(array), "bias": mx.array(array), "__name__": "a_user"}
    exec(compile(text, "<line of a message>", "exec"), names)
    return names["made"]


def test_arrays_in_the_place_of_a_score_mod() -> None:
    bias = message(TypeError, lambda: attend(score_mod=np.zeros((3, 8, 8))))
    assert bias == (
        "score_mod takes a score_mod function, not a numpy array of float64 and shape (3, 8, 8); with the array bias, "
        "write score_mod=lambda score, b, h, q_idx, kv_idx: score + bias[h, q_idx, kv_idx]"
    )
    mask = message(TypeError, lambda: attend(score_mod=mx.ones((8, 8), mx.bool_)))
    assert mask.endswith("write block_mask=lambda b, h, q_idx, kv_idx: mask[q_idx, kv_idx]")
    assert message(TypeError, lambda: attend(score_mod=mx.ones((8,)))).endswith(
        "not an mx.array of float32 and shape (8,)"
    )


class Tensor:
    shape, dtype = (8, 8), "torch.bool"


def test_arrays_of_another_library_are_converted_first() -> None:
    said = message(TypeError, lambda: attend(block_mask=Tensor()))
    assert "not a Tensor of torch.bool and shape (8, 8); with mask = mx.array(...) of it, write block_mask=" in said


# ---- words, factories, mods of the other kind ----------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "causal": (
        {"block_mask": "causal"},
        TypeError,
        "block_mask takes a mask_mod function, not 'causal'; pass flex.mods.causal, under which query i sees keys 0 to "
        "i; where the queries are the last of the keys, as with a cache, pass flex.mods.causal(offset=kv_len - q_len)",
    ),
    "causal as a score": ({"score_mod": "causal"}, TypeError, "not 'causal'; pass as block_mask flex.mods.causal"),
    "True": ({"block_mask": True}, TypeError, "not a bool; causal attention is block_mask=flex.mods.causal"),
    "a factory's name": ({"score_mod": "alibbi"}, TypeError, "not 'alibbi'; did you mean flex.mods.alibi(...)?"),
    "a word": ({"block_mask": "zzz"}, TypeError, "not 'zzz'; flex.mods has masks and biases by name"),
    "a list of masks": (
        {"block_mask": [causal, causal]},
        TypeError,
        "not a list; masks combine by flex.and_masks(...)",
    ),
    "a BlockMask": (
        {"score_mod": flex.create_block_mask(causal, None, None, 8, 8)},
        TypeError,
        "score_mod takes a score_mod function, not a BlockMask; pass it as block_mask",
    ),
    "a mask_mod": ({"score_mod": mods.causal}, TypeError, "<mask_mod causal> is a mask_mod: pass it as block_mask"),
    "a score_mod": ({"block_mask": mods.alibi(2)}, TypeError, "<score_mod alibi> is a score_mod: pass it as score_mod"),
    "a mask function": (
        {"score_mod": causal},
        flex.TraceError,
        "a function of 4 arguments is a mask_mod: pass it as block_mask; else write def causal(score, b, h, q_idx, kv",
    ),
    "a lambda": (
        {"block_mask": lambda q, k: q >= k},
        flex.TraceError,
        "a mask_mod takes 4 arguments (b, h, q_idx, kv_idx), <lambda> takes 2",
    ),
    "a partial lambda": (
        {"score_mod": functools.partial(lambda s, t: s * t, t=2)},
        flex.TraceError,
        "Remedy: write lambda score, b, h, q_idx, kv_idx: ...",
    ),
    "a factory": (
        {"block_mask": mods.sliding_window},
        flex.TraceError,
        "it makes a mask_mod: call it and pass what it gives as block_mask, flex.mods.sliding_window(window)",
    ),
    "a factory of the other kind": (
        {"block_mask": mods.alibi},
        flex.TraceError,
        "it makes a score_mod: call it and pass what it gives as score_mod, flex.mods.alibi(slopes)",
    ),
    "options": (
        {"kernel_options": "cpu"},
        TypeError,
        'kernel_options is \'cpu\'; expected a dict: write kernel_options={"BACKEND": "cpu"}',
    ),
    "a list of options": ({"kernel_options": ["cpu"]}, TypeError, 'write kernel_options={"BACKEND": ...}'),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_mod_is_answered_with_what_to_write(case: str) -> None:
    arguments, kind, words = WRONG[case]
    assert words in message(kind, lambda: attend(**arguments))


def test_every_factory_of_the_zoo_says_that_it_is_to_be_called() -> None:
    made = [name for name in mods.__all__ if inspect.isfunction(getattr(mods, name))]
    made = [name for name in made if getattr(mods, name).__annotations__["return"] in ("MaskMod", "ScoreMod")]
    assert len(made) > 20
    for name in made:
        said = message(flex.TraceError, lambda name=name: attend(score_mod=getattr(mods, name)))  # type: ignore[misc]
        assert f"call it and pass what it gives as {'block_mask' if 'makes a mask' in said else 'score_mod'}" in said
        assert f"flex.mods.{name}(" in said


# ---- names of arguments ------------------------------------------------------------------------------------------

NAMES: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: attend(mask="causal"),
        "flex_attention() has no argument 'mask'; pass a mask_mod, or what create_block_mask",
    ),
    (
        lambda: attend(is_causal=True),
        "has no argument 'is_causal'; write block_mask=flex.mods.causal, under which query",
    ),
    (lambda: attend(blok_mask=causal), "has no argument 'blok_mask'; did you mean block_mask=?"),
    (lambda: attend(zzz=1), "has no argument 'zzz'; it takes query, key, value, score_mod, block_mask, scale,"),
    (lambda: attend(backend="cpu"), "has no argument 'backend'; write kernel_options={\"BACKEND\": ...}"),
    (
        lambda: flex.create_block_mask(causal, None, None, 8, 8, device="cuda"),  # type: ignore[call-arg]
        "create_block_mask() has no argument 'device'; leave it out: arrays of MLX are on no device",
    ),
    (
        lambda: flex.create_block_mask(causal, None, None, 8, 8, _compile=True),  # type: ignore[call-arg]
        "has no argument '_compile'; leave it out: blocks follow from the mask's bounds",
    ),
    (lambda: flex.create_block_mask(causal, None, None, q_len=8, kv_len=8), "did you mean Q_LEN=?"),  # type: ignore[call-arg]
    (
        lambda: flex.create_mask(causal, None, None, 8, 8, device="cpu"),  # type: ignore[call-arg]
        "create_mask() has no argument 'device'; leave it out",
    ),
    (
        lambda: flex.BlockMask.from_kv_blocks(None, None, compute_q_blocks=False),  # type: ignore[call-arg]
        "from_kv_blocks() has no argument 'compute_q_blocks'; leave it out",
    ),
]


@pytest.mark.parametrize(("call", "words"), NAMES, ids=range(len(NAMES)))
def test_wrong_names_of_arguments_name_the_right_one(call: Callable[[], Any], words: str) -> None:
    assert words in message(TypeError, call)


def test_torchs_device_by_position_is_named() -> None:
    said = message(ValueError, lambda: flex.create_block_mask(causal, None, None, 8, 8, "cuda"))  # type: ignore[arg-type]
    assert said == "BLOCK_SIZE is 'cuda'; if it is torch's device, leave it out: arrays of MLX are on none"


def test_signatures_stay_what_they_are() -> None:
    names = "query key value score_mod block_mask scale enable_gqa return_lse kernel_options return_aux sinks".split()
    assert list(inspect.signature(flex.flex_attention).parameters) == names
    assert "offset" in inspect.signature(flex.create_block_mask).parameters
    assert flex.create_block_mask.__doc__ and inspect.unwrap(flex.create_block_mask) is not flex.create_block_mask


@pytest.mark.parametrize("remedies", [OF_ATTENTION, OF_BLOCK_MASK])
def test_no_remedy_is_about_an_argument_that_exists(remedies: dict[str, str]) -> None:
    functions = [flex.flex_attention] if remedies is OF_ATTENTION else [flex.create_block_mask, flex.create_mask]
    for function in functions:
        names = {*inspect.signature(function).parameters}
        assert not names & {*remedies}
        for argument in re.findall(r"\b(?:write|as) (\w+)=", " ".join(remedies.values())):
            assert argument in {*names, *inspect.signature(flex.flex_attention).parameters}, argument


def test_calls_without_wrong_names_pass_through() -> None:
    @knows({})
    def both(a: int, *more: int, b: int = 2) -> tuple[Any, ...]:
        return a, more, b

    assert both(1, 3, b=4) == (1, (3,), 4) and both(a=5) == (5, (), 2)
    assert message(TypeError, lambda: both(1, c=3)) == "both() has no argument 'c'; did you mean a=?"  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        both()  # type: ignore[call-arg]


# ---- masks and MLX's transformations, indices -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [flex.create_mask, flex.create_block_mask], ids=lambda f: f.__name__)
@pytest.mark.parametrize("transform", [mx.compile, mx.vmap], ids=["compile", "vmap"])
def test_masks_of_arrays_that_mlx_hides_say_so(make: Any, transform: Any) -> None:
    def made(documents: mx.array) -> mx.array:
        mask = make(lambda b, h, q_idx, kv_idx: documents[q_idx] == documents[kv_idx], None, None, 8, 8)
        return mask if isinstance(mask, mx.array) else mask.to_dense()

    said = message(ValueError, lambda: transform(made)(mx.zeros((8,) if transform is mx.compile else (2, 8), mx.int32)))
    assert said == (
        "a BlockMask or dense mask needs the values of documents, which mx.compile and mx.vmap hide; make it outside "
        "them, or pass the mask_mod itself to flex_attention inside"
    )


def test_an_ellipsis_stands_for_the_other_axes() -> None:
    mask = flex.create_block_mask(lambda b, h, q, k: (q >= k) & (k >= h), 2, 3, 64, 64, BLOCK_SIZE=16)
    assert mask[...] == mask
    assert mask[..., 1:3] == mask[:, :, 1:3]
    assert mask[1, ...] == mask[1]
    assert mask[0, ..., 2] == mask[0, :, 2]
    assert mask[0, 1, ..., 2] == mask[0, 1, 2]


@pytest.mark.parametrize("index", [None, "a", 1.5, True, [[0]], [1.5]], ids=repr)
def test_what_is_no_index_is_named(index: Any) -> None:
    mask = flex.create_block_mask(causal, None, None, 64, 64, BLOCK_SIZE=16)
    assert message(IndexError, lambda: mask[:, index]) == (
        f"H is indexed by {index!r}; a BlockMask takes ints, slices and lists of ints"
    )

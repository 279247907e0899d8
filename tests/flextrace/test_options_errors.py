"""kernel_options that flextrace does not know: the nearest one, and what becomes of torch's."""

from __future__ import annotations

import importlib.util
import typing
from typing import Any

import mlx.core as mx
import pytest

import flextrace as flex
from flextrace import options as options_table
from flextrace.options import check_options

TORCH = "is torch's and has no meaning here"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"BACKENDS": "cpu"}, "unknown kernel option 'BACKENDS'; known: BACKEND, .*; did you mean 'BACKEND'\\?$"),
        ({"num_threads": 2}, "did you mean 'NUM_THREADS'\\?$"),
        ({"SMOOTHK": True}, "did you mean 'SMOOTH_K'\\?$"),
        ({"QUANT_QK": "int8"}, "did you mean 'QK_QUANT'\\?$"),
        ({"pipelines": "fused"}, "did you mean 'PIPELINE'\\?$"),
        ({"zzz": 1}, f"^unknown kernel option 'zzz'; known: {', '.join(options_table.OPTIONS)}$"),
        ({3: 1}, "unknown kernel option 3"),
        ({"fwd_NUM_THREADS": 2}, "unknown kernel option 'fwd_NUM_THREADS': there is one 'NUM_THREADS' for both"),
        ({"BLOCK_M": 64}, f"'BLOCK_M' {TORCH} \\(flextrace chooses tile sizes for each call\\); leave it out"),
        ({"fwd_BLOCK_N": 64}, f"'fwd_BLOCK_N' {TORCH} .*tile sizes"),
        ({"bwd_BLOCK_M1": 64}, f"'bwd_BLOCK_M1' {TORCH} .*tile sizes"),
        ({"num_warps": 4}, f"'num_warps' {TORCH} .*launched"),
        ({"NUM_STAGES": 4}, f"'NUM_STAGES' {TORCH} .*launched"),
        ({"PRESCALE_QK": True}, f"'PRESCALE_QK' {TORCH} .*float32 before the mod"),
        ({"ROWS_GUARANTEED_SAFE": True}, f"'ROWS_GUARANTEED_SAFE' {TORCH} .*derives it from the mask"),
        ({"BLOCKS_ARE_CONTIGUOUS": True}, f"'BLOCKS_ARE_CONTIGUOUS' {TORCH}"),
        ({"OUTPUT_MAX": True}, "pass return_aux=flex.AuxRequest"),
        ({"BACKEND": "TRITON"}, "BACKEND='TRITON' is torch's; here it is one of metal, .*: leave it out"),
        (
            {"ASYNC_COPY": "Pipeline"},
            "ASYNC_COPY is one of pipelined, intrinsic; got 'Pipeline'; did you mean 'pipelined'",
        ),
        ({"PIPELINE": "unfused"}, "PIPELINE is one of fused, staged; got 'unfused'; did you mean 'fused'"),
        ({"QK_QUANT": "fp8"}, "QK_QUANT is one of int8; got 'fp8'$"),
        ({"SMOOTH_K": 1}, "SMOOTH_K takes a bool, not 1"),
        ({"NUM_THREADS": True}, "NUM_THREADS takes an int, not True"),
    ],
)
def test_messages(options: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_options(options)
    q = mx.ones((1, 1, 4, 8))
    with pytest.raises(ValueError, match=message):
        flex.flex_attention(q, q, q, kernel_options=options)


@pytest.mark.parametrize("name", ["READER", "FRONTEND", "SOURCE", "BYTECODE"])
def test_no_option_says_how_a_mod_is_read(name: str) -> None:
    q = mx.ones((1, 1, 4, 8))
    with pytest.raises(ValueError, match=f"^unknown kernel option '{name}'; known: BACKEND, "):
        flex.flex_attention(
            q, q, q, score_mod=lambda score, b, h, q_idx, kv_idx: score, kernel_options={name: "source"}
        )


def test_known_options_pass() -> None:
    options = {"BACKEND": "cpu", "NUM_THREADS": 2, "PIPELINE": "fused", "QK_QUANT": "int8", "SMOOTH_K": True}
    assert check_options(options) == options and check_options(None) == {}


def test_no_option_of_ours_is_called_torchs() -> None:
    assert not options_table.OPTIONS.keys() & options_table.TORCH_OPTIONS.keys()


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_all_of_torchs_options_are_known() -> None:
    torch_flex: Any = importlib.import_module("torch.nn.attention.flex_attention")
    hints = typing.get_type_hints(torch_flex.FlexKernelOptions)
    assert set(hints) - {"BACKEND"} <= set(options_table.TORCH_OPTIONS)
    assert typing.get_args(torch_flex._Backend) == options_table.TORCH_BACKENDS


def test_the_docstring_says_of_each_option_what_its_row_does() -> None:
    said = " ".join((flex.flex_attention.__doc__ or "").split())
    for name, option in options_table.OPTIONS.items():
        assert f'"{name}": {option.sentence}' in said
        assert set(option.backends) <= set(options_table.ALL) and option.backends
        assert option.choices == () or str in option.takes

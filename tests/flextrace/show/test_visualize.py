"""Pictures of masks, BlockMasks and score_mods: what is painted, the counts in the title, the characters of text."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import flextrace as flex
from flextrace import mods, visualize

pytest.importorskip("matplotlib").use("Agg")


def by_head(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx + kv_idx) % 5 <= h if b > 0 else kv_idx <= q_idx


def table(b: int, h: int, q_len: int, kv_len: int) -> np.ndarray:
    return np.array([[bool(by_head(b, h, i, j)) for j in range(kv_len)] for i in range(q_len)])


def painted(figure: Any) -> np.ndarray:
    """The picture's own array, without matplotlib's scaling."""
    return np.asarray(figure.axes[0].get_images()[0].get_array())


def states(figure: Any) -> np.ndarray:
    """0 empty, 1 partial, 2 full, by the colours of the picture: the darker the fuller."""
    light = painted(figure).sum(axis=-1)
    shades = {EMPTY: 0, PARTIAL: 1, FULL: 2}
    return np.vectorize(lambda x: shades[round(float(x), 3)])(light)


def lightness(colour: str) -> float:
    return round(sum(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), 3)


EMPTY, PARTIAL, FULL = (lightness(visualize.STATES[state][1]) for state in (0, 1, 2))


def check_axes(figure: Any, q_len: int, kv_len: int) -> None:
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("kv_idx", "q_idx")
    assert axes.get_xlim() == (-0.5, kv_len - 0.5) and axes.get_ylim() == (q_len - 0.5, -0.5)  # row 0 on top


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(("b", "h"), [(0, 0), (1, 0), (1, 2)])
def test_mask_paints_every_pair_of_the_chosen_head(b: int, h: int) -> None:
    figure = visualize.mask(by_head, 20, 31, b=b, h=h)
    expected = table(b, h, 20, 31)
    np.testing.assert_array_equal(states(figure), 2 * expected)
    check_axes(figure, 20, 31)
    assert figure.axes[0].get_title() == (
        f"by_head\n{expected.sum()} of 620 pairs kept ({100 * expected.mean():.1f} %), b {b}, h {h}"
    )
    assert legend(figure) == ["hidden", "kept"]


@pytest.mark.parametrize("kind", ["mlx", "numpy"])
def test_mask_takes_arrays(kind: str) -> None:
    dense = np.stack([[table(b, h, 9, 7) for h in range(3)] for b in range(2)])
    given = mx.array(dense) if kind == "mlx" else dense
    np.testing.assert_array_equal(states(visualize.mask(given, b=1, h=2)), 2 * dense[1, 2])
    np.testing.assert_array_equal(states(visualize.mask(given[0, 0])), 2 * dense[0, 0])
    np.testing.assert_array_equal(states(visualize.mask(given[:1], b=5, h=1)), 2 * dense[0, 1])  # B 1 broadcasts


def test_block_grid_is_drawn_where_it_can_be_seen() -> None:
    def lines(**options: Any) -> int:
        return len(visualize.mask(mods.causal, 400, **options).axes[0].get_lines())

    assert lines() == 6 and lines(block_size=(100, 200)) == 4 and lines(block_size=None) == 0
    assert lines(block_size=4) == 0  # a hundred lines would hide the mask


def test_long_masks_are_drawn_by_cells_and_never_densely(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_dense(*_: Any) -> Any:
        raise AssertionError("the dense mask was made")

    monkeypatch.setattr("flextrace.show.cells.create_mask", no_dense)
    figure = visualize.mask(mods.sliding_window(1024), 131072)
    shown = states(figure)
    assert shown.shape == (512, 512)
    diagonal = np.arange(512)[:, None] - np.arange(512)
    np.testing.assert_array_equal(shown, np.select([abs(diagonal - 2) == 2, abs(diagonal - 2) < 2], [1, 2], 0))
    check_axes(figure, 131072, 131072)
    assert "cells of 256 x 256 pairs: 1,530 full, 1,020 partial" in figure.axes[0].get_title()
    assert legend(figure) == ["empty", "partial", "full"]


def test_a_long_array_is_reduced_to_cells() -> None:
    dense = np.tril(np.ones((1030, 700), bool))
    figure = visualize.mask(dense)
    shown = states(figure)
    assert shown.shape == (344, 350)
    for i, j in np.random.default_rng(0).integers(0, 344, (200, 2)):
        cell = dense[3 * i : 3 * i + 3, 2 * j : 2 * j + 2]
        assert shown[i, j] == int(cell.any()) + int(cell.all())
    assert f"{dense.sum():,} of 721,000 pairs kept" in figure.axes[0].get_title()
    check_axes(figure, 1030, 700)


@pytest.mark.parametrize(("b", "h"), [(0, 0), (1, 1)])
def test_block_mask_shows_blocks_and_counts(b: int, h: int) -> None:
    made = flex.create_block_mask(by_head, 2, 3, 50, 70, BLOCK_SIZE=(8, 16))
    figure = visualize.block_mask(made, b=b, h=h)
    dense = table(b, h, 50, 70)
    expected = np.zeros((7, 5), int)
    for i, j in np.ndindex(7, 5):
        block = dense[8 * i : 8 * i + 8, 16 * j : 16 * j + 16]
        expected[i, j] = int(block.any()) + int(block.all())
    np.testing.assert_array_equal(states(figure), expected)
    check_axes(figure, 50, 70)
    empty, partial, full = (int((expected == state).sum()) for state in range(3))
    visited = np.kron(expected > 0, np.ones((8, 16)))[:50, :70].mean()
    assert figure.axes[0].get_title() == (
        "by_head: 7 x 5 blocks of 8 x 16\n"
        f"{full} full, {partial} partial, {empty} empty, sparsity {100 * (1 - visited):.1f} %, b {b}, h {h}"
    )
    assert legend(figure) == [f"empty ({empty})", f"partial ({partial})", f"full ({full})"]
    assert len(figure.axes[0].get_lines()) == 6 + 4


def test_block_mask_of_a_long_sequence_is_coarse_with_exact_counts() -> None:
    made = flex.create_block_mask(mods.causal, None, None, 131072, 131072)
    figure = visualize.block_mask(made)
    assert states(figure).shape == (512, 512)
    assert "523,776 full, 1,024 partial, 523,776 empty" in figure.axes[0].get_title()


def test_score_mod_shows_values_of_given_tensors() -> None:
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(2, 6, 12, 8)).astype(np.float32), rng.normal(size=(2, 2, 17, 8)).astype(np.float32)
    figure = visualize.score_mod(mods.softcap(2.0), query=mx.array(q), key=mx.array(k), b=1, h=5)
    expected = 2 * np.tanh(q[1, 5] @ k[1, 1].T / math.sqrt(8) / 2)
    np.testing.assert_allclose(painted(figure), expected, atol=1e-5)
    check_axes(figure, 12, 17)
    assert f"{expected.min():.4g} to {expected.max():.4g}, b 1, h 5" in figure.axes[0].get_title()
    assert figure.axes[1].get_ylabel() == "score"
    scaled = visualize.score_mod(mods.softcap(2.0), query=q, key=k, scale=0.1)
    np.testing.assert_allclose(painted(scaled), 2 * np.tanh(0.1 * q[0, 0] @ k[0, 0].T / 2), atol=1e-5)


def test_score_mod_starts_from_zero_or_from_given_scores() -> None:
    scores = np.random.default_rng(2).normal(size=(3, 6, 5)).astype(np.float32)
    bias = -(2.0**-4) * (np.arange(6)[:, None] - np.arange(5))
    np.testing.assert_allclose(painted(visualize.score_mod(mods.alibi(4), 6, 5, h=1)), bias, atol=1e-6)
    shown = visualize.score_mod(mods.alibi(4), scores=mx.array(scores), h=1)
    np.testing.assert_allclose(painted(shown), scores[1] + bias, atol=1e-6)
    half = mx.array(scores).astype(mx.bfloat16)
    np.testing.assert_allclose(
        painted(visualize.score_mod(mods.alibi(4), scores=half, h=1)), scores[1] + bias, atol=0.02
    )


@pytest.mark.parametrize("given", ["mask_mod", "array"])
def test_what_a_mask_hides_and_minus_infinity_are_grey(given: str) -> None:
    def mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return -math.inf if kv_idx == 1 else score + kv_idx

    hiding: Any = mods.causal if given == "mask_mod" else np.tril(np.ones((6, 6), bool))
    figure = visualize.score_mod(mod, 6, mask=hiding)
    hidden = np.triu(np.ones((6, 6), bool), 1)
    hidden[:, 1] = True
    np.testing.assert_array_equal(np.ma.getmaskarray(figure.axes[0].get_images()[0].get_array()), hidden)
    assert "0 to 5, 20 of 36 hidden or -inf" in figure.axes[0].get_title()
    nothing = visualize.score_mod(mod, 4, mask=np.zeros((4, 4), bool))
    assert "nothing finite" in nothing.axes[0].get_title()


def test_long_scores_are_sampled() -> None:
    figure = visualize.score_mod(mods.alibi(8), 100_000, 3)
    assert painted(figure).shape == (511, 3)
    np.testing.assert_allclose(painted(figure)[10], 0.5 * (np.arange(3) - 1960), rtol=1e-6)
    assert "every 196. row and 1. column" in figure.axes[0].get_title()


def test_bfloat16_captures_are_read() -> None:
    table = mx.array([0.5, 2.0]).astype(mx.bfloat16)
    figure = visualize.score_mod(mods.alibi(table), 4, h=1)
    np.testing.assert_allclose(painted(figure)[0], [0, 2, 4, 6])


@pytest.mark.long
def test_saved_pictures_are_not_empty(tmp_path: Path) -> None:
    from matplotlib.image import imread

    made = flex.create_block_mask(mods.causal, None, None, 512, 512)
    for name, draw in {
        "mask.png": lambda path: visualize.mask(mods.causal, 64, path=path, title="mine"),
        "blocks.png": lambda path: visualize.block_mask(made, path=path, title="mine"),
        "score.png": lambda path: visualize.score_mod(mods.alibi(8), 64, path=path, title="mine"),
    }.items():
        figure = draw(tmp_path / name)
        assert figure.axes[0].get_title().startswith("mine")
        pixels = imread(tmp_path / name)
        assert min(pixels.shape[:2]) > 300
        np.testing.assert_array_equal(pixels[0, 0], [1, 1, 1, 1])  # an opaque white margin, on any background
        assert len(np.unique((pixels[..., :3] * 255).astype(int).reshape(-1, 3), axis=0)) > 10
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_show_opens_the_figure_and_nothing_stays_open_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    shown: list[int] = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(len(pyplot.get_fignums())))
    visualize.mask(mods.causal, 8)
    assert pyplot.get_fignums() == [] and shown == []
    visualize.mask(mods.causal, 8, show=True)
    assert shown == [1]
    pyplot.close("all")


# ---- text ------------------------------------------------------------------------------------------------------------


def test_text_of_a_mask() -> None:
    assert visualize.text(mods.bidirectional_window(1), 4, 5) == (
        "bidirectional_window: 11 of 20 pairs kept (55.0 %), b 0, h 0\n██···\n███··\n·███·\n··███"
    )
    assert visualize.text(np.eye(3, dtype=bool), ascii=True).split("\n")[1:] == ["#..", ".#.", "..#"]
    assert visualize.text(by_head, 5, b=1, h=3, ascii=True).split("\n")[1:] == [
        "".join(".#"[kept] for kept in row) for row in table(1, 3, 5, 5).astype(int)
    ]


def test_text_of_a_block_mask() -> None:
    made = flex.create_block_mask(mods.causal, None, None, 40, 40, BLOCK_SIZE=10)
    assert visualize.text(made, ascii=True) == (
        "causal: 4 x 4 blocks of 10 x 10, 6 full, 4 partial, 6 empty, sparsity 37.5 %, b 0, h 0\n+...\n#+..\n##+.\n###+"
    )


@pytest.mark.parametrize("length", [60, 61, 1000, 100_000])
@pytest.mark.parametrize("width", [8, 60, 79])
def test_text_is_no_wider_than_asked(length: int, width: int) -> None:
    made = flex.create_block_mask(mods.causal, None, None, length, length, BLOCK_SIZE=16)
    for what in (mods.causal, mods.alibi(4), made):
        lines = visualize.text(what, length, width=width).split("\n")[1:]
        assert lines and len({len(line) for line in lines}) == 1
        assert len(lines[0]) <= width and len(lines) <= width
        assert len(set("".join(lines))) > 1


def test_text_of_a_score_mod() -> None:
    assert visualize.text(mods.alibi(8), 3, ascii=True) == "alibi: -1 to 1, b 0, h 0\n+#@\n-+#\n.-+"
    plain = visualize.text(lambda score, b, h, q_idx, kv_idx: score if kv_idx else -math.inf, 2, ascii=True)
    assert plain.split("\n")[1:] == [" .", " ."]


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: visualize.mask(mods.causal), "a function needs q_len"),
        (lambda: visualize.mask(mods.causal, 0), "a function needs q_len"),
        (lambda: visualize.mask(mx.ones((2, 2))), "expected bools, True where a pair is kept"),
        (lambda: visualize.mask(np.ones(3, bool)), r"the mask has shape \(3,\)"),
        (lambda: visualize.mask(np.ones((2, 3, 4, 4), bool), h=3), "h is 3; this has h from 0 to 2"),
        (lambda: visualize.mask(np.ones((2, 3, 4, 4), bool), b=-1), "b is -1"),
        (lambda: visualize.score_mod(mods.alibi(4)), "a function needs q_len"),
        (lambda: visualize.score_mod(mods.alibi(4), query=mx.ones((2, 4))), "give query and key together"),
        (lambda: visualize.text(mods.causal, 8, width=3), "at least 8 characters"),
    ],
)
def test_errors_name_the_remedy(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_wrong_kind_of_mod() -> None:
    with pytest.raises(TypeError, match="mask takes a mask_mod"):
        visualize.mask(mods.alibi(4), 8)
    with pytest.raises(TypeError, match="score_mod takes a score_mod"):
        visualize.score_mod(mods.causal, 8)


def test_without_matplotlib_figures_name_the_command_and_text_works() -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import flextrace as flex\n"
        "print(flex.visualize.text(flex.mods.causal, 2, ascii=True))\n"
        "try:\n    flex.visualize.mask(flex.mods.causal, 2)\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "#.\n##" in done.stdout
    assert "pip install 'flextrace[plot]'" in done.stdout


def test_importing_flextrace_imports_no_matplotlib() -> None:
    program = "import sys, flextrace.show.figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)

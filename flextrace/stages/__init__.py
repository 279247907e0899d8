"""Tensors -> tensors: the stages of attention as functions, each one a kernel by itself."""

from flextrace.kernels.stages.protocol import BlockLists, OutputParts, SoftmaxParts

from .stages import attention_output, block_mask, block_sparse_matmul, matmul, scale, score_mod, softmax

__all__ = [
    "BlockLists",
    "OutputParts",
    "SoftmaxParts",
    "attention_output",
    "block_mask",
    "block_sparse_matmul",
    "matmul",
    "scale",
    "score_mod",
    "softmax",
]

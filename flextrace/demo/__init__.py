"""`flextrace demo`: semantic search over the docstrings of the user's own Python, every attention layer by flextrace.

stdlib --corpus--> documents --tokenizer, packing--> packs --encoder--> embeddings --search--> answers

`flextrace demo train`: a language model that learns from the same docstrings, character by character.

stdlib --corpus--> documents --characters--> batches --language_model, training--> a model that writes
"""

from .search import run
from .weights import DemoError

__all__ = ["DemoError", "run"]

"""`flextrace demo`: semantic search over the docstrings of the user's own Python, every attention layer by flextrace.

stdlib --corpus--> documents --tokenizer, packing--> packs --encoder--> embeddings --search--> answers
"""

from .search import run
from .weights import DemoError

__all__ = ["DemoError", "run"]

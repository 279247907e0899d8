"""Functions that have source, read from their `ast`."""

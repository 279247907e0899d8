"""Python function -> verbs: what all readers of functions share, and a folder for each of them."""

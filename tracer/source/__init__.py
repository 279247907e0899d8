"""Python function -> its text, its name and what it takes."""

"""The tree of a mod, and what can be done with it without knowing Python."""

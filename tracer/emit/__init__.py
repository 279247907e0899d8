"""Expr -> text: how it is written in Python, C++ and Metal."""

"""Calls that no kernel can make -> what to write instead."""

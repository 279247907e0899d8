"""Mods, BlockMasks, reports, the cache -> what a reader sees of them: HTML for notebooks."""

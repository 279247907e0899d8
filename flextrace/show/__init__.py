"""Mods, BlockMasks, reports, the cache -> what a reader sees of them: HTML, figures, tables, characters."""

"""Attention of a few query rows on Apple GPUs: keys split over threadgroups, the heads that share them in one tile."""

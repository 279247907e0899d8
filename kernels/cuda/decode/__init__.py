"""Attention of a few query rows on NVIDIA GPUs: keys split over blocks, the heads that share them in one tile."""

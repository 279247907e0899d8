"""Attention forward on Hopper GPUs (sm_90a): warp-specialised, wgmma fed by TMA."""

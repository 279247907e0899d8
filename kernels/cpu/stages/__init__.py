"""Each stage of attention as a kernel by itself: its text, and how it is launched."""

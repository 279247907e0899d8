"""Expression tree -> running kernel."""

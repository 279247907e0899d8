"""Copies by simdgroup_async_copy, where a device has it."""

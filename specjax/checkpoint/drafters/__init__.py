"""Checkpoints of drafters: the published layouts, read and written."""

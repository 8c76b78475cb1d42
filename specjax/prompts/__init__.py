"""Prompts: whatever is handed over, files of them, and the sets that benchmarks take."""

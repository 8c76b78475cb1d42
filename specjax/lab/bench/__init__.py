"""Benchmarks: prompt sets, plans, measurements kept prompt by prompt, and what is made of them."""

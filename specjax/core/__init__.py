"""Shared types, caches and sharding. Imports nothing else of specjax."""

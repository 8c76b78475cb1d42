"""Checkpoints: Hugging Face directories, the hub, llama2.c files, and their tokenizers."""

from specjax.checkpoint.errors import CheckpointError
from specjax.checkpoint.load import Model, load

__all__ = ["CheckpointError", "Model", "load"]

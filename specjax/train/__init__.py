"""Training: corpus, tokenizer, objectives, the loop and its checkpoints."""

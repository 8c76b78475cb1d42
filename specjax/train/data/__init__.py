"""What is trained on: rows of tokens from texts and conversations, and the batches of them."""

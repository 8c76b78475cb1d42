"""What makes this repository's own pictures and tables; nothing here is installed."""

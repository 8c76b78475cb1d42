"""specjax: lossless speculative decoding as one XLA program."""

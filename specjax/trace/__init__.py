"""Records of what speculation did: in memory, as a file, and the figures drawn from them."""

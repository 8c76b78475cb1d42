"""The losslessness audit."""

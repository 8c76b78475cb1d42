"""A random-weight model on an accelerator, against what the hardware allows, part by part."""

"""Networks of the drafters that are trained, one kind a file."""

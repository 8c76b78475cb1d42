"""What the rooms of the lab hand to each other and keep in files, as dataclasses."""

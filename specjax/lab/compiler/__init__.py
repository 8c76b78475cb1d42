"""What the compiler knows of a cycle, ahead of time and without the hardware."""

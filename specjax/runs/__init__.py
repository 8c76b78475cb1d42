"""Results that a killed run continues."""

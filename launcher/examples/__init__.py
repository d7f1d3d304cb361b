"""Training scripts that run as they are."""

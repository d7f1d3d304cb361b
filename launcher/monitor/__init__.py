"""A run as it goes: the terminal view and the exporters."""

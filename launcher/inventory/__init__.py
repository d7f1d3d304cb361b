"""Machines: what they have, and what was measured on them."""

"""torch's own suite for c10d backends, run on ours and on Gloo: ``python -m tests.conformance --help``."""

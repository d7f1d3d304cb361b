"""Programs that nobody here wrote, run over Gloo and over ours: ``python -m tests.ecosystem --help``."""

"""What an engine observes while it runs: stragglers, link rates, traces."""

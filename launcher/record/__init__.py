"""What a run leaves: events, the run folder, and what can be read from it."""

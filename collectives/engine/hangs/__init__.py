"""Where each rank is, when an op does not go on: asked by whoever waits, answered by a thread that each group has."""

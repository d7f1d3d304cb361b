"""A run on a cluster: the client outside, the driver inside."""

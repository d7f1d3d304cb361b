"""The engine: executes a forest's table on sockets, on a thread of its own. Only this package imports numba."""

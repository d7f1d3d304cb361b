"""All that Numba compiles, and nothing else: the stamp of its cache covers these files and `schedule/codec.py`."""

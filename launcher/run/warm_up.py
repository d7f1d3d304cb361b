"""Compiles the engine into this node's cache, or loads it from there, and prints the seconds that took."""

import collectives

if __name__ == "__main__":
    print(collectives.warm_up())

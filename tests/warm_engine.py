"""Imported by the server from which test processes are forked: they find the engine compiled."""

from collectives.engine.selftest import warm_up

warm_up()

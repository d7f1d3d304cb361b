"""Bytes between ranks: rendezvous, handshake, TCP, shared memory and control connections."""

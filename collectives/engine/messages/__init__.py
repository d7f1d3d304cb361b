"""Messages between two ranks, on connections of their own."""

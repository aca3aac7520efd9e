"""Bytes that nobody would send, by the million, for all that reads what others wrote: `python -m bench.fuzz`."""

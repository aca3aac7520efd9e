"""Verified load while processes are killed, stopped and cut off: `python -m bench.chaos --seed 7 --for 60s`."""

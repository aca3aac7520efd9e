"""The loop and what runs on it: sockets, streams and channels that know no role."""

"""The supervisor and what it is made of: policy, processes, sockets, heartbeats, faults."""

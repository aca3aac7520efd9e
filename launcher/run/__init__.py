"""A running cluster as others find it: its directory, its processes by identity, its control socket."""

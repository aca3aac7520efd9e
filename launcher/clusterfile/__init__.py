"""cluster.yaml: what may stand in it, what it means, and where it is wrong."""

"""A whole cluster in one process, under virtual time, from one seed: the nodes' own code in a simulated world."""

"""A whole cluster in one process, under virtual time, from one seed: the nodes' own code in a simulated world. A stale
compiled form of it is refused."""

import os

from memcluster.node.native import refuse_stale

refuse_stale(os.path.dirname(__file__))

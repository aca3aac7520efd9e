"""One process of the cluster. A stale compiled form of it is refused before anything else is imported."""

from memcluster.node.native import FOLDER, refuse_stale

refuse_stale(FOLDER)

"""The live page of `memcluster watch --web`: the cluster as a picture, for people in front of it, and for classes."""

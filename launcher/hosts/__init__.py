"""Servers on other hosts: what starts a guardian there, the guardian, and its nodes as the supervisor has them."""

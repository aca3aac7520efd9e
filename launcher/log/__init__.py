"""The merged log as people want it: lines, figures, traces, a picture."""

"""One file for each topology: where a client's request goes, and who answers it."""

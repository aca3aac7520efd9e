"""The log as records and files: how it is written, read, ordered and filtered. No sockets."""

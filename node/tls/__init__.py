"""TLS for a stream: certificates and keys, the layer without I/O, and a socket with it. It knows no NBD and no loop."""

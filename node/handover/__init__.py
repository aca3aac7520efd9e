"""A server passes its clients' sockets and requests on to others, which answer the clients themselves."""

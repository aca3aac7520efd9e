"""A server asks others for the pieces of a request, as their client, and answers itself."""

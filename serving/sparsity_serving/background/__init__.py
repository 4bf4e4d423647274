"""What goes on beside the calls of a server."""

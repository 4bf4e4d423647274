"""Processes that belong together: routers of one port, children that end with their parent."""

"""Commands about routers and workers."""

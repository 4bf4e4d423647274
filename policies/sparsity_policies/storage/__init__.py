"""Where policies and decisions are kept: Redis, or a folder."""

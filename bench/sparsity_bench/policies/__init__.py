"""How fast policies take effect, and how many a router bears."""

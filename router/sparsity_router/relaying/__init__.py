"""One decided request to a worker and back: attempts, hedges, turns, shadow."""

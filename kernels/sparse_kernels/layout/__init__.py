"""Where tokens lie: in pages, tiles and batches, and what is kept of each page."""

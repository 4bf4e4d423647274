"""Options of a process: stated once, read from command line, environment and file."""

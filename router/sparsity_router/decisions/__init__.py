"""What policy gives one request, held against its session and against what policy says by now."""

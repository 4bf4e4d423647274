"""What sparse attention costs a model in quality, by length and task; and profiles calibrated from data."""

"""Risk that is found in the text itself: a linear model over hashed n-grams reads every window of a prompt."""

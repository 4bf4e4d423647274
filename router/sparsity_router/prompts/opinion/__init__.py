"""A second opinion on the parts of a prompt that the linear model finds likely."""

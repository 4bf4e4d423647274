"""Commands about requests: what is asked, answered, explained and traced."""

"""What a policy tells requests by: conditions, literals, patterns."""

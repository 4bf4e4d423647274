"""What tokens are in a text: whole characters of a stream, and the bytes of each token."""

"""What was asked: text, token ids, length, domain; a request becomes signals."""

"""Block selection for prefill in one pass over sub-page means."""

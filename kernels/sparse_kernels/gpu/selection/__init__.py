"""Block selection for prefill in one pass over sub-page means, and how decode finds the best pages of many."""

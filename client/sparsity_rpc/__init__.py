"""What both ends of a call share: errors and their statuses, channels, TLS, trace context, the tiers' names."""

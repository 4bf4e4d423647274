"""Learns a profile from text: a threshold for each KV head, dense heads, and a decode budget for each layer."""

"""Chats: what their callers wrote, and how the model's template renders it."""

"""Conversations: how they are spelled, learned from, and held (docs/chat.md)."""

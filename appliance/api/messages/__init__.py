"""Anthropic's API: `POST /v1/messages` and the count of its tokens."""

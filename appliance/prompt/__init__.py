"""From messages to token ids with spans for media, and from token ids back to text."""

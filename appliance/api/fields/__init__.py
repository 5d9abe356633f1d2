"""Fields that requests of several routes have, and how bodies are validated."""

"""The HTTP endpoint: OpenAI's API over ASGI."""

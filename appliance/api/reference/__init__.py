"""`/openapi.json` and `/docs`: the API told of by itself."""

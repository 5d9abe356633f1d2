"""What the launcher can do with a composed recipe: one module a task."""

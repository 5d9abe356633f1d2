"""What a model takes of memory, known before it is loaded; imports no torch."""

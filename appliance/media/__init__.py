"""Media of a request: from the bytes a client sent to tensors for the model."""

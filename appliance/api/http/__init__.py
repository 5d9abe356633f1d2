"""What surrounds every route: parsing, bodies, keys, failures, streams."""

"""One step: a batch through towers, decoder and head."""

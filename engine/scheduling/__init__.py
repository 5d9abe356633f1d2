"""Who computes what in the next step: sequences, pages, and the batch they make."""

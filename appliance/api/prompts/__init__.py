"""`/tokenize`, `/detokenize` and `/v1/…/render`: prompts shown, not answered."""

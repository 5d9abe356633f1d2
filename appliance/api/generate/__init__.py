"""`/generate`: plain completions in SGLang's words."""

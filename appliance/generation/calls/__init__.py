"""Calls of tools: how models write them, one file a format, and how they are held to."""

#!/bin/sh
# Serve the demo model with green under transparent pictures: examples/stream.py then prints
# "The background is green."

make serve ARGS="recipe=demo 'media.image.rgba_background=[0, 128, 0]'"

#!/bin/sh
# A picture and a question with curl. Serve first: make serve. Run in the project's folder: sh examples/ask.sh

curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{
  "model": "demo",
  "messages": [{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,'"$(base64 < docs/images/red-circle.png | tr -d '\n')"'"}},
    {"type": "text", "text": "What do you see?"}]}]}'

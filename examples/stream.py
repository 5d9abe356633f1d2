"""A transparent picture and a streamed answer, with the official client (pip install openai).

Serve first: make serve. Run in the project's folder: python examples/stream.py
"""

import base64
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
picture = base64.b64encode(Path("docs/images/blue-star.png").read_bytes()).decode()
for chunk in client.chat.completions.create(
    model="demo",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                {"type": "text", "text": "What colour is the background?"},
            ],
        }
    ],
    stream=True,
):
    print(chunk.choices[0].delta.content or "", end="")

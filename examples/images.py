"""Several pictures in one message; their order is the order of the parts.

Serve first: make serve. Run in the project's folder: python examples/images.py
"""

import base64
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
content = []
for name in ("red-circle.png", "blue-star.png"):
    data = base64.b64encode(Path("docs/images", name).read_bytes()).decode()
    content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
content.append({"type": "text", "text": "Which image shows a star, first or second?"})
answer = client.chat.completions.create(
    model="demo", messages=[{"role": "user", "content": content}]
)
print(answer.choices[0].message.content)

"""An answer of a form that a program can read, with the official client (pip install openai).

`response_format` takes a JSON schema in the same way, and `client.chat.completions.parse` a class;
the demo's small model has learnt sentences alone.

Serve first: make serve. Run in the project's folder: python examples/structured.py
"""

import base64
import re
from pathlib import Path

from openai import OpenAI

COLOURS = "black|blue|green|red|white|yellow"
FORM = rf"I see a ({COLOURS}) (circle|square|star|triangle) on a ({COLOURS}) background\."

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
picture = base64.b64encode(Path("docs/images/blue-star.png").read_bytes()).decode()
completion = client.chat.completions.create(
    model="demo",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                {"type": "text", "text": "Colour?"},
            ],
        }
    ],
    extra_body={"structured_outputs": {"regex": FORM}},
)
found = re.fullmatch(FORM, completion.choices[0].message.content or "")
if found:
    print("shape:", found[2], "colour:", found[1], "background:", found[3])

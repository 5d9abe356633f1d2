"""A clip as frames of one's own: six pictures in one video URL. A file goes in as data:video/mp4.

Serve first: make serve. Run with Pillow installed: .venv/bin/python examples/video.py
"""

import base64
import io

from openai import OpenAI
from PIL import Image

frames = []
for step in range(6):  # a red square that moves to the right
    frame = Image.new("RGB", (196, 196), "white")
    left = 10 + 24 * step
    frame.paste((220, 20, 20), (left, 78, left + 40, 118))
    encoded = io.BytesIO()
    frame.save(encoded, "PNG")
    frames.append(base64.b64encode(encoded.getvalue()).decode())

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
clip = {"type": "video_url", "video_url": {"url": "data:video/png;base64," + ",".join(frames)}}
question = {"type": "text", "text": "Which way does the square move?"}
answer = client.chat.completions.create(
    model="demo", messages=[{"role": "user", "content": [clip, question]}]
)
print(answer.choices[0].message.content)

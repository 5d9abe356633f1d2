"""A picture and a question from Python, without a server.

Run in the project's folder, after make install: .venv/bin/python examples/offline.py
"""

from PIL import Image

from appliance.offline import Appliance

picture = Image.open("docs/images/red-circle.png")
with Appliance("demo") as model:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What do you see?"}]
    answer = model.chat([{"role": "user", "content": content}])
    print(answer["choices"][0]["message"]["content"])

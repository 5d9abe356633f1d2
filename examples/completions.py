"""A plain completion: no template is applied, so the prompt spells out the special tokens.

Serve first: make serve. Run: python examples/completions.py
"""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
answer = client.completions.create(
    model="demo",
    prompt="<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    max_tokens=40,
)
print(answer.choices[0].text)

"""How sure the model is of each token, and what else it might have said.

Serve first: make serve. Run: python examples/logprobs.py
"""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
answer = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": "What can you do?"}],
    logprobs=True,
    top_logprobs=2,
    max_tokens=12,
)
for token in answer.choices[0].logprobs.content:
    others = ", ".join(f"{one.token!r} {one.logprob:.2f}" for one in token.top_logprobs)
    print(f"{token.token!r}: {others}")

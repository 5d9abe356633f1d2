"""Which text answers a question: vectors that point the same way mean alike, best first.

Serve first: make serve ARGS="recipe=minilm". Run: python examples/embeddings.py
"""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
question = "How long do I boil an egg?"
texts = [
    "The museum is closed on Mondays.",
    "Put it into hot water for six minutes.",
    "Our hens are fed twice a day.",
]
model = client.models.list().data[0].id
answer = client.embeddings.create(model=model, input=[question, *texts])
asked, *others = (entry.embedding for entry in answer.data)
scores = [sum(a * b for a, b in zip(asked, other, strict=True)) for other in others]
for score, text in sorted(zip(scores, texts, strict=True), reverse=True):
    print(f"{score:.3f} {text}")

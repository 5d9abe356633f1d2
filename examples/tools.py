"""A tool that the model calls, with the official client (pip install openai).

The call must come here, by `tool_choice`: the demo's small model has not learnt of tools, and is
held to the schema all the same. One that has learnt of them decides by itself, with "auto".

Serve first: make serve. Run in the project's folder: python examples/tools.py
"""

from typing import Literal

from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel


class Paint(BaseModel):
    """Paints the wall."""

    colour: Literal["black", "blue", "green", "red", "white", "yellow"]


client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
messages = [{"role": "user", "content": "Paint the wall."}]
asked = {"model": "demo", "tools": [pydantic_function_tool(Paint)], "parallel_tool_calls": False}
answer = client.chat.completions.parse(messages=messages, tool_choice="required", **asked)
message = answer.choices[0].message
(call,) = message.tool_calls or []
done = f"The wall is {call.function.parsed_arguments.colour} now."
print(f"{call.function.name}: {done}")

messages += [message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": done}]
answer = client.chat.completions.create(messages=messages, max_tokens=30, **asked)
print(f"{answer.usage.prompt_tokens} tokens of prompt, the tool's answer among them")

# Copyright The sealedchat Authors
# SPDX-License-Identifier: Apache-2.0
"""Asks a proxy through the openai package of PyPI: sdk.py BASE_URL TOKEN."""

import asyncio
import sys
import time

import openai

base_url, token = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key=token)
question = [{"role": "user", "content": "What is the capital of France?"}]
tools = [
    {
        "type": "function",
        "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
    }
]


def refused(error, status, call):
    try:
        call()
    except error as e:
        assert e.status_code == status, e
        assert e.body["message"] and e.body["type"], e.body
        return e
    raise AssertionError(f"no {error.__name__}")


# chat
answer = client.chat.completions.create(model="demo", messages=question)
assert "Paris" in answer.choices[0].message.content, answer
assert answer.usage.total_tokens > 0, answer

# stream: pieces arrive one by one, since the demo's model types
begun = time.monotonic()
pieces, times = [], []
for chunk in client.chat.completions.create(model="demo", messages=question, stream=True):
    if chunk.choices and chunk.choices[0].delta.content:
        pieces.append(chunk.choices[0].delta.content)
        times.append(time.monotonic() - begun)
assert "".join(pieces) == answer.choices[0].message.content, pieces
assert times[-1] - times[0] > 0.02 * len(pieces), times

# a stream that is left early
with client.chat.completions.create(model="demo", messages=question, stream=True) as stream:
    next(iter(stream))

# tools, whole and in a stream
answer = client.chat.completions.create(model="demo", messages=question, tools=tools)
call = answer.choices[0].message.tool_calls[0]
assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == "clock", answer
answer = client.chat.completions.create(
    model="demo",
    tools=tools,
    messages=question
    + [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "noon"}],
)
assert "noon" in answer.choices[0].message.content, answer
streamed = client.chat.completions.create(
    model="demo", messages=question, tools=tools, stream=True
)
names = [
    c.function.name
    for chunk in streamed
    for choice in chunk.choices
    for c in choice.delta.tool_calls or []
]
assert names == ["clock"], names

# embeddings, in the SDK's usual form, and models
data = client.embeddings.create(model="demo", input=["a", "b"], encoding_format="float").data
assert len(data) == 2 and len(data[0].embedding) == 4, data
assert [m.id for m in client.models.list()] == ["demo"]

# errors
refused(openai.NotFoundError, 404, lambda: client.models.retrieve("nothing"))
refused(openai.BadRequestError, 400, lambda: client.chat.completions.create(model="demo", messages="no list"))
refused(
    openai.AuthenticationError,
    401,
    lambda: openai.OpenAI(base_url=base_url, api_key="wrong").models.list(),
)
e = refused(
    openai.PermissionDeniedError,
    403,
    lambda: client.models.list(extra_headers={"Origin": "http://evil.example"}),
)
assert e.code == "cross_origin", e


# twenty at once
async def many():
    async with openai.AsyncOpenAI(base_url=base_url, api_key=token) as c:
        ask = lambda i: c.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": f"number {i}"}]
        )
        answers = await asyncio.gather(*(ask(i) for i in range(20)))
    for i, a in enumerate(answers):
        assert f"“number {i}”" in a.choices[0].message.content, (i, a)


asyncio.run(many())
print(f"Python's openai {openai.__version__}: chat, stream, tools, embeddings, models, errors")

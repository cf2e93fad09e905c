# Copyright The sealedchat Authors
# SPDX-License-Identifier: Apache-2.0
"""Asks a model through the proxy with OpenAI's package, whole and as a stream.

Usage: ask.py PROXY [MODEL]: base URLs. With the second one, the answers have to be those that the
model server gives without anything between.
"""

import sys

import openai

QUESTION = [{"role": "user", "content": "Name three colours."}]
# The same question has the same answer: no chance in the choice of words, nothing kept in between.
SAME = {"temperature": 0, "seed": 1, "max_tokens": 24, "extra_body": {"cache_prompt": False}}


def whole(client):
    answer = client.chat.completions.create(model="smollm2", messages=QUESTION, **SAME)
    if answer.usage.completion_tokens == 0 or answer.choices[0].finish_reason not in ("stop", "length"):
        sys.exit(f"no usage, or no end: {answer}")
    return answer.choices[0].message.content


def streamed(client):
    pieces, end = [], None
    stream = client.chat.completions.create(model="smollm2", messages=QUESTION, stream=True, **SAME)
    for chunk in stream:
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            end = choice.finish_reason or end
    if end is None or sum(map(bool, pieces)) < 3:
        sys.exit(f"no stream, or no end: {pieces}")
    return "".join(pieces)


def main():
    sealed = openai.OpenAI(base_url=sys.argv[1], api_key="any", max_retries=0)
    names = [model.id for model in sealed.models.list()]
    if names != ["smollm2"]:
        sys.exit(f"models: {names}")
    text, pieces = whole(sealed), streamed(sealed)
    print("the model says:", text)
    if not text.strip() or pieces != text:
        sys.exit(f"streamed: {pieces}")
    if len(sys.argv) > 2:
        direct = whole(openai.OpenAI(base_url=sys.argv[2], api_key="any", max_retries=0))
        if direct != text:
            sys.exit(f"without the proxy: {direct}")


main()

#!/usr/bin/env python3
"""Talks to a running server through the packages `openai` and `anthropic` (pip install openai anthropic pydantic).

    scripts/clients/python_sdks.py --url http://127.0.0.1:8137 [--key KEY]
"""

import argparse
import asyncio
import json
import sys
import traceback

import anthropic
import openai
from pydantic import BaseModel

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


class Person(BaseModel):
    name: str
    age: int


HELLO = [{"role": "user", "content": "Hello!"}]
WEATHER = {
    "name": "weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Bonn", "Paris"]}},
                   "required": ["city"], "additionalProperties": False},
}


@check
def models(ai, _):
    listed = ai.models.list().data
    assert listed and ai.models.retrieve(listed[0].id).id == listed[0].id


@check
def chat(ai, _):
    answer = ai.chat.completions.create(model="m", messages=HELLO, max_tokens=16)
    assert answer.choices[0].message.content and answer.usage.completion_tokens > 0
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


@check
def chat_stream(ai, _):
    pieces, usage = [], None
    stream = ai.chat.completions.create(model="m", messages=HELLO, max_tokens=16, temperature=0, stream=True,
                                        stream_options={"include_usage": True})
    for chunk in stream:
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    whole = ai.chat.completions.create(model="m", messages=HELLO, max_tokens=16, temperature=0)
    assert "".join(pieces) == whole.choices[0].message.content and usage.total_tokens == whole.usage.total_tokens


@check
def chat_stream_helper(ai, _):
    with ai.chat.completions.stream(model="m", messages=HELLO, max_tokens=200) as stream:
        kinds = {event.type for event in stream}
        assert "chunk" in kinds and stream.get_final_completion().choices[0].message.content is not None


@check
def several_answers(ai, _):
    answer = ai.chat.completions.create(model="m", messages=HELLO, n=3, max_tokens=4, temperature=1.5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


@check
def chat_logprobs(ai, _):
    answer = ai.chat.completions.create(model="m", messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert content and all(len(token.top_logprobs) == 3 for token in content)


@check
def structured(ai, _):
    answer = ai.chat.completions.parse(model="m", messages=HELLO, response_format=Person, max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, Person)


@check
def forced_tool(ai, _):
    answer = ai.chat.completions.create(model="m", messages=HELLO, max_tokens=80, tool_choice="required",
                                        tools=[{"type": "function", "function": WEATHER}])
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["city"] in ("Bonn", "Paris")


@check
def streamed_tool(ai, _):
    arguments, names = "", []
    for chunk in ai.chat.completions.create(model="m", messages=HELLO, max_tokens=80, tool_choice="required", stream=True,
                                            tools=[{"type": "function", "function": WEATHER}]):
        for call in chunk.choices[0].delta.tool_calls or []:
            names += [call.function.name] if call.function.name else []
            arguments += call.function.arguments or ""
    assert names == ["weather"] and json.loads(arguments)


@check
def tool_answered(ai, _):
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    messages = HELLO + [{"role": "assistant", "content": None, "tool_calls": [call]},
                        {"role": "tool", "tool_call_id": "a", "content": "rain"}]
    answer = ai.chat.completions.create(model="m", messages=messages, max_tokens=4,
                                        tools=[{"type": "function", "function": WEATHER}])
    assert answer.choices[0].message.content is not None


@check
def completions(ai, _):
    answer = ai.completions.create(model="m", prompt=["Once", "The king"], max_tokens=4, echo=True, logprobs=2)
    assert answer.choices[1].text.startswith("The king") and answer.choices[0].logprobs.tokens
    assert list(ai.completions.create(model="m", prompt="Once", max_tokens=4, stream=True))


@check
def embeddings(ai, _):
    floats = ai.embeddings.create(model="m", input=["a", "b"], encoding_format="float").data
    packed = ai.embeddings.create(model="m", input=["a", "b"]).data
    assert len(floats) == 2 and max(abs(a - b) for a, b in zip(floats[0].embedding, packed[0].embedding)) < 1e-6


@check
def responses(ai, _):
    answer = ai.responses.create(model="m", input="Hello!", max_output_tokens=16)
    assert answer.output_text and answer.usage.output_tokens > 0


@check
def responses_stream(ai, _):
    with ai.responses.stream(model="m", input="Hello!", max_output_tokens=16) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and final.output_text


@check
def responses_structured(ai, _):
    answer = ai.responses.parse(model="m", input="Hello!", text_format=Person, max_output_tokens=200)
    assert isinstance(answer.output_parsed, Person)


@check
def responses_tool(ai, _):
    answer = ai.responses.create(model="m", input="Hello!", max_output_tokens=80, tool_choice="required",
                                 tools=[{"type": "function", **WEATHER, "strict": False}])
    assert answer.output[-1].type == "function_call" and json.loads(answer.output[-1].arguments)


@check
def refusals(ai, _):
    for wrong, kind in [(dict(max_tokens=-1), openai.BadRequestError), (dict(top_p=7), openai.BadRequestError),
                        (dict(max_tokens=10**9), openai.BadRequestError)]:
        try:
            ai.chat.completions.create(model="m", messages=HELLO, **wrong)
        except kind as error:
            assert error.body["message"]
        else:
            raise AssertionError(f"{wrong} was accepted")


@check
def asynchronous(ai, _):
    async def several():
        async with openai.AsyncOpenAI(base_url=ai.base_url, api_key=ai.api_key) as client:
            ask = lambda: client.chat.completions.create(model="m", messages=HELLO, max_tokens=6)
            return await asyncio.gather(*(ask() for _ in range(4)))

    assert all(answer.choices[0].message.content for answer in asyncio.run(several()))


@check
def messages(_, claude):
    answer = claude.messages.create(model="m", max_tokens=16, messages=HELLO, system="Be brief.")
    assert answer.content[0].text and answer.usage.output_tokens > 0


@check
def messages_stream(_, claude):
    with claude.messages.stream(model="m", max_tokens=16, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().content[0].text == text and text


@check
def messages_tool(_, claude):
    tool = {"name": "weather", "input_schema": WEATHER["parameters"]}
    answer = claude.messages.create(model="m", max_tokens=80, messages=HELLO, tools=[tool],
                                    tool_choice={"type": "tool", "name": "weather"})
    call = answer.content[-1]
    assert answer.stop_reason == "tool_use" and call.input["city"]
    with claude.messages.stream(model="m", max_tokens=80, messages=HELLO, tools=[tool], tool_choice={"type": "any"}) as stream:
        assert stream.get_final_message().content[-1].input["city"]
    back = HELLO + [{"role": "assistant", "content": [call.model_dump()]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]}]
    assert claude.messages.create(model="m", max_tokens=4, messages=back, tools=[tool]).content


@check
def messages_stop(_, claude):
    answer = claude.messages.create(model="m", max_tokens=60, messages=HELLO, stop_sequences=["e"], extra_body={"temperature": 0})
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == "e"


@check
def messages_count(_, claude):
    assert claude.messages.count_tokens(model="m", messages=HELLO).input_tokens > 0


@check
def messages_refused(_, claude):
    try:
        claude.messages.create(model="m", max_tokens=-1, messages=HELLO)
    except anthropic.BadRequestError as error:
        assert error.body["type"] == "error" and error.body["error"]["message"]
    else:
        raise AssertionError("a negative max_tokens was accepted")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8137")
    parser.add_argument("--key", default="none")
    args = parser.parse_args()
    ai = openai.OpenAI(base_url=args.url + "/v1", api_key=args.key, max_retries=0)
    claude = anthropic.Anthropic(base_url=args.url, api_key=args.key, max_retries=0)
    failed = 0
    for function in CHECKS:
        try:
            function(ai, claude)
            print("ok      ", function.__name__)
        except Exception:
            failed += 1
            print("FAILED  ", function.__name__)
            traceback.print_exc()
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} passed, openai {openai.__version__}, anthropic {anthropic.__version__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

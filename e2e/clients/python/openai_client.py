"""OpenAI's client for Python, unchanged, against the server at BASE_URL."""

import json

import openai
from pydantic import BaseModel, Field

from check import BASE_URL, GRAMMAR, PERSON, PLACE, check, run

client = openai.OpenAI(base_url=BASE_URL, api_key="none", max_retries=0)
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "How many?"}]}]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "How it is.", "parameters": PLACE, "strict": True}}]


class Person(BaseModel):
    name: str = Field(min_length=1, max_length=12)
    age: int = Field(ge=0, le=150)


def create(thinking, **more):
    return client.chat.completions.create(model="default", **{"messages": MESSAGES, **more}, extra_body={"thinking_budget": thinking})


@check("models")
def _():
    assert len(client.models.list().data) == 1


@check("chat within a budget")
def _():
    reply = create(12, max_completion_tokens=60, n=2, seed=1, stop=["never"], logprobs=True, top_logprobs=2, user="me", metadata={"a": "b"})
    assert len(reply.choices) == 2 and reply.choices[0].message.content and reply.choices[0].message.reasoning_content
    assert reply.usage.completion_tokens_details.reasoning_tokens == 24
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2


@check("effort")
def _():
    reply = client.chat.completions.create(model="default", messages=MESSAGES, reasoning_effort="low", max_completion_tokens=200)
    assert reply.usage.completion_tokens_details.reasoning_tokens == 50  # an eighth of 400


@check("a deadline")
def _():
    reply = client.chat.completions.create(model="default", messages=MESSAGES, extra_headers={"Budget": "12,60s"})
    assert reply.choices[0].message.content and reply.budget["used"] == 12


@check("streaming")
def _():
    with client.chat.completions.stream(
        model="default", messages=MESSAGES, stream_options={"include_usage": True}, extra_body={"thinking_budget": 12, "grammar": GRAMMAR}
    ) as stream:
        content = "".join(event.delta for event in stream if event.type == "content.delta")
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == content and whole.usage.completion_tokens_details.reasoning_tokens == 12


@check("cancelling")
def _():
    for chunk in (stream := create(8000, stream=True)):
        if getattr(chunk.choices[0].delta, "reasoning_content", None):
            break
    stream.close()


@check("errors")
def _():
    for error, wrong in ((openai.NotFoundError, {"model": "nobody"}), (openai.BadRequestError, {"model": "default", "temperature": 9})):
        try:
            client.chat.completions.create(messages=MESSAGES, **wrong)
        except error as e:
            assert e.body["message"]
        else:
            raise AssertionError(f"no {error.__name__}")


@check("structured output")
def _():
    reply = client.chat.completions.parse(model="default", messages=MESSAGES, response_format=Person, extra_body={"thinking_budget": 5})
    assert isinstance(reply.choices[0].message.parsed, Person)
    reply = create(5, response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}})
    assert set(json.loads(reply.choices[0].message.content)) == {"name", "age"}


@check("tools")
def _():
    call = create(5, tools=TOOLS, tool_choice="required").choices[0].message
    assert "place" in json.loads(call.tool_calls[0].function.arguments)
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "20 degrees"}
    reply = create(5, messages=[*MESSAGES, call, result], tools=TOOLS, tool_choice="none", max_tokens=40)
    assert reply.choices[0].message.content


@check("tools, streamed")
def _():
    with client.chat.completions.stream(
        model="default", messages=MESSAGES, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}}, extra_body={"thinking_budget": 5}
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert done[0].name == "weather" and "place" in done[0].parsed_arguments


@check("responses")
def _():
    first = client.responses.create(
        model="default", input="How many?", instructions="Count.", reasoning={"effort": "low", "summary": "auto"}, max_output_tokens=100
    )
    assert first.output_text and first.output[0].summary[0].text and first.usage.output_tokens_details.reasoning_tokens == 50
    with client.responses.stream(
        model="default", input="And now?", previous_response_id=first.id, extra_body={"thinking_budget": 5, "grammar": GRAMMAR}
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        last = stream.get_final_response()
    assert last.output_text == text and last.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)


@check("responses in the background")
def _():
    response = client.responses.create(model="default", input="How many?", background=True)
    assert response.status == "in_progress"
    assert client.responses.cancel(response.id).status == "cancelled"


@check("responses: structured output and tools")
def _():
    parsed = client.responses.parse(model="default", input="Who?", text_format=Person, extra_body={"thinking_budget": 5})
    assert isinstance(parsed.output_parsed, Person)
    tools = [{"type": "function", "name": "weather", "parameters": PLACE, "strict": True}]
    called = client.responses.create(model="default", input="Is it warm?", tools=tools, tool_choice="required", extra_body={"thinking_budget": 5})
    calls = [item for item in called.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "20 degrees"} for call in calls]
    history = [{"role": "user", "content": "Is it warm?"}, *called.output, *results]
    assert client.responses.create(model="default", input=history, max_output_tokens=40, extra_body={"thinking_budget": 5}).output_text


run()

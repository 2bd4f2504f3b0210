"""LangChain's client for OpenAI, unchanged, against the server at BASE_URL."""

from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI

from check import BASE_URL, PERSON, PLACE, check, run

MESSAGES = [SystemMessage("Be kind."), HumanMessage("How many?")]
WEATHER = {"title": "weather", "description": "How the weather is.", **PLACE}


def model(thinking=5, **more):
    return ChatOpenAI(base_url=BASE_URL, api_key="none", model="default", max_retries=0, extra_body={"thinking_budget": thinking}, **more)


@check("chat within a budget")
def _():
    reply = model(12, max_tokens=60).invoke(MESSAGES)
    assert reply.content and reply.usage_metadata["output_token_details"]["reasoning"] == 12


@check("effort")
def _():
    chat = ChatOpenAI(base_url=BASE_URL, api_key="none", model="default", max_retries=0, reasoning_effort="low", max_tokens=200, use_responses_api=False)
    assert chat.invoke(MESSAGES).usage_metadata["output_token_details"]["reasoning"] == 50  # an eighth of 400


@check("streaming")
def _():
    whole = None
    for chunk in model(12, max_tokens=40, stream_usage=True).stream(MESSAGES):
        whole = chunk if whole is None else whole + chunk
    assert whole.content and whole.usage_metadata["output_token_details"]["reasoning"] == 12


@check("cancelling")
def _():
    for _chunk in (stream := model(8000).stream(MESSAGES)):
        break
    stream.close()


@check("structured output")
def _():
    found = model().with_structured_output(PERSON, method="json_schema", strict=True).invoke(MESSAGES)
    assert found["name"] and isinstance(found["age"], int)


@check("tools")
def _():
    chat = model(max_tokens=200)
    called = chat.bind_tools([WEATHER], tool_choice="weather").invoke(MESSAGES)
    call = called.tool_calls[0]
    assert call["name"] == "weather" and isinstance(call["args"]["place"], str)
    assert chat.bind_tools([WEATHER], tool_choice="none").invoke([*MESSAGES, called, *(ToolMessage("20 degrees", tool_call_id=c["id"]) for c in called.tool_calls)]).content


@check("responses")
def _():
    chat = model(use_responses_api=True, max_tokens=60)
    first = chat.invoke(MESSAGES)
    assert first.text
    whole = None
    for chunk in chat.stream([HumanMessage("And now?")], previous_response_id=first.response_metadata["id"]):
        whole = chunk if whole is None else whole + chunk
    assert whole.text


run()

"""Renders cases.json with Python's jinja2, set up as Hugging Face transformers sets it up for chat templates, and writes the outputs
to golden.json. Made with jinja2 3.1.6: python3 golden.py"""

import datetime, json, pathlib
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

here = pathlib.Path(__file__).parent
NOW = datetime.datetime(2026, 3, 9, 8, 5, 7)


def raise_exception(message):
    raise RuntimeError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception
env.globals["strftime_now"] = NOW.strftime


def render(source, variables):
    try:
        return {"out": env.from_string(source).render(**variables)}
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"}


def message(m, arguments_as_text, none_content):
    m = dict(m)
    reasoning = m.pop("reasoning", None)
    if reasoning:
        m["reasoning_content"] = reasoning
        if not (m["content"] and m.get("tool_calls")):
            m["thinking"] = reasoning
    if m.get("tool_calls") and not m["content"] and none_content:
        m["content"] = None
    if m.get("tool_calls"):
        m["tool_calls"] = [
            {"id": c["id"], "type": "function", "function": {
                "name": c["name"], "arguments": c["arguments"] if arguments_as_text else json.loads(c["arguments"])}}
            for c in m["tool_calls"]]
    return m


golden = {}
for case in json.loads((here / "cases.json").read_text()):
    source = (here / "templates" / (case["template"] + ".jinja")).read_text()
    variables = {
        "messages": [message(m, case.get("arguments_as_text", False), case["template"] in ("deepseek-r1",)) for m in case["messages"]],
        "bos_token": case.get("bos", ""), "eos_token": case.get("eos", ""), "add_generation_prompt": True,
        "enable_thinking": case["thinking"], "thinking": case["thinking"], **case.get("kwargs", {}),
    }
    if case.get("effort"):
        variables["reasoning_effort"] = case["effort"]
    if case.get("tools"):
        variables["tools"] = case["tools"]
    golden[case["template"] + "/" + case["name"]] = render(source, variables)
(here / "golden.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")

snippets = here / ".." / "jinja" / "testdata"
out = []
for source in (snippets / "snippets.txt").read_text().split("\n%%\n"):
    out.append({"source": source, **render(source, json.loads((snippets / "vars.json").read_text()))})
(snippets / "golden.json").write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")

"""What each program here checks: a named function that raises where the client does not get what it should. A line for each."""

import os
import sys
import traceback

BASE_URL = os.environ["BASE_URL"] + "/v1"

# The model under test never ends by itself; some clients take an answer that was cut for an error.
GRAMMAR = "root ::= [a-z ]{20}"

PERSON = {
    "title": "person",
    "description": "Somebody.",
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PLACE = {
    "type": "object",
    "properties": {"place": {"type": "string", "maxLength": 10}},
    "required": ["place"],
    "additionalProperties": False,
}

checks = []


def check(name):
    def register(test):
        checks.append((name, test))
        return test

    return register


def run():
    failed = False
    for name, test in checks:
        try:
            test()
            print(f"ok {name}", flush=True)
        except Exception:
            failed = True
            print(f"not ok {name}: {traceback.format_exc()}", flush=True)
    sys.exit(failed)

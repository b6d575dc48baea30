"""Answers in a form that the client gives: always in it, whatever the model would like."""

import json
import re

import openai
import pytest

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "job": {"enum": ["baker", "doctor", "pilot"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
    },
    "required": ["name", "age", "job"],
    "additionalProperties": False,
}


@pytest.fixture
def client(shared):
    return shared.openai()


def ask(client, text, **fields):
    messages = [{"role": "user", "content": text}]
    fields = {"model": "auto", "temperature": 0, "max_tokens": 150, **fields}
    return client.chat.completions.create(messages=messages, **fields)


def by_schema(schema, **extra):
    spec = {"name": "person", "schema": schema, "strict": True, **extra}
    return {"type": "json_schema", "json_schema": spec}


def content(answer) -> str:
    assert answer.choices[0].finish_reason == "stop", answer
    return answer.choices[0].message.content


def is_person(text: str) -> bool:
    person = json.loads(text)
    assert list(person) == [name for name in PERSON["properties"] if name in person]
    assert set(PERSON["required"]) <= set(person) <= set(PERSON["properties"])
    assert isinstance(person["name"], str) and len(person["name"]) <= 20
    assert isinstance(person["age"], int) and 0 <= person["age"] <= 150
    assert person["job"] in ("baker", "doctor", "pilot")
    tags = person.get("tags", [])
    return len(tags) <= 3 and all(isinstance(t, str) and len(t) <= 8 for t in tags)


@pytest.mark.parametrize("temperature", [0, 1.0, 2.0])
def test_a_schema_is_kept_to_at_any_temperature(client, temperature):
    for seed in range(5):
        answer = ask(
            client,
            "Invent a person.",
            response_format=by_schema(PERSON),
            temperature=temperature,
            seed=seed,
        )
        assert is_person(content(answer))


def test_a_stream_carries_the_same_object_piece_by_piece(client):
    whole = ask(client, "Invent a pilot.", response_format=by_schema(PERSON))
    chunks = list(ask(client, "Invent a pilot.", response_format=by_schema(PERSON), stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == content(whole) and is_person(text)


def test_json_object_is_an_object_of_any_kind(client):
    """A free object may go on for as long as its model likes, and small ones like to."""
    ended = 0
    for seed in range(6):
        answer = ask(
            client,
            "Give me the capital of France as JSON with the key capital.",
            response_format={"type": "json_object"},
            temperature=0.7,
            seed=seed,
        )
        text = answer.choices[0].message.content
        assert text.startswith("{")
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(text), dict)
            ended += 1
    assert ended > 0


def test_text_is_no_form_at_all(client):
    plain = ask(client, "What is the capital of France?", max_tokens=16)
    text = ask(
        client,
        "What is the capital of France?",
        response_format={"type": "text"},
        max_tokens=16,
    )
    assert plain.choices[0].message.content == text.choices[0].message.content


@pytest.mark.parametrize("newer", [False, True], ids=["guided_", "structured_outputs"])
def test_vllms_fields_work_too(client, newer):
    def form(kind, value):
        return {"structured_outputs": {kind: value}} if newer else {f"guided_{kind}": value}

    moods = ["positive", "negative", "neutral"]
    question = "How does the writer feel? I love this film!"
    assert content(ask(client, question, extra_body=form("choice", moods))) in moods
    date = content(ask(client, "When?", extra_body=form("regex", r"\d{4}-\d{2}-\d{2}")))
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", date)
    assert is_person(content(ask(client, "Invent a doctor.", extra_body=form("json", PERSON))))
    grammar = 'start: number " + " number\nnumber: /[0-9]{1,3}/\n'
    term = content(ask(client, "Write a sum.", extra_body=form("grammar", grammar)))
    assert re.fullmatch(r"\d{1,3} \+ \d{1,3}", term)



def test_a_direct_answer_does_not_break_the_form(client):
    answer = ask(client, "What is 2 + 2?", extra_body={"guided_choice": ["four", "five"]})
    assert content(answer) in ("four", "five")
    assert content(ask(client, "What is 2 + 2?")) == "4", "without a form it is answered directly"


def test_completions_take_a_form_as_well(client):
    answer = client.completions.create(
        model="auto",
        prompt="The weather in Paris as JSON:",
        max_tokens=120,
        temperature=0,
        extra_body={"guided_json": PERSON},
    )
    assert is_person(answer.choices[0].text)


def test_an_answer_cut_short_says_so(client):
    answer = ask(client, "Invent a person.", response_format=by_schema(PERSON), max_tokens=6)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"response_format": {"type": "xml"}}, ["response_format.type", "json_schema"]),
        ({"response_format": {"type": "json_schema"}}, ["json_schema.schema", "missing"]),
        (
            {"response_format": by_schema({"properties": {"a": {"not": {}}}})},
            ["#/properties/a", "not"],
        ),
        ({"response_format": by_schema({"type": "strng"})}, ["strng"]),
        ({"guided_regex": "(abc"}, ["regular expression", "unclosed group"]),
        ({"guided_regex": "((a{1000}){1000}){1000}"}, ["regular expression", "states"]),
        ({"guided_choice": []}, ["choices", "0 entries"]),
        ({"guided_grammar": "start: foo\n"}, ["foo", "1(8)"]),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            ["guided_regex", "response_format"],
        ),
    ],
)
def test_a_form_that_cannot_be_kept_to_is_refused_with_its_place(shared, fields, words):
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], **fields}
    response = shared.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    for word in words:
        assert word in error["message"], error


def test_the_client_sees_its_own_error(client):
    with pytest.raises(openai.BadRequestError):
        ask(client, "hi", extra_body={"guided_regex": "("})

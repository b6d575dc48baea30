"""Questions that need no model."""

import pytest

from homeostat_process import text_of


def test_arithmetic_is_answered_without_the_model(shared):
    response = shared.ask("What is 17 * 23?")
    assert "391" in text_of(response)
    assert response.headers["x-homeostat-tier"] == "direct"
    assert response.headers["x-homeostat-method"] == "arithmetic"
    body = response.json()
    assert body["homeostat"]["tier"] == "direct"
    assert body["homeostat"]["method"] == "arithmetic"
    assert body["usage"]["completion_tokens"] == 0
    assert body["choices"][0]["finish_reason"] == "stop"
    record = shared.record(response.headers["x-request-id"])
    assert record["ending"] == "direct" and record["steps"] == []


def test_a_direct_answer_streams_like_any_other(shared):
    stream = shared.openai().chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": "What is 17 * 23?"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "391" in "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[-1].usage.completion_tokens == 0
    assert chunks[-1].model_extra["homeostat"]["tier"] == "direct"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 2 + 2 * 10?", "22"),
        ("What is (3 + 4) * 5?", "35"),
        ("Convert 5 kilometers to meters.", "5000"),
    ],
)
def test_direct_answers_are_right(shared, question, answer):
    response = shared.ask(question)
    assert response.headers["x-homeostat-tier"] == "direct", text_of(response)
    assert answer in text_of(response).replace(",", "").replace(" ", "")


def test_a_question_that_only_contains_numbers_goes_to_a_model(shared):
    response = shared.ask("Who was president of France in 1981?")
    assert response.status_code == 200
    assert response.headers["x-homeostat-tier"] != "direct"

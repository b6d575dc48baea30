"""What an application sees through the official OpenAI client."""

import asyncio
import math

import pytest

CAPITAL = "What is the capital of France?"


@pytest.fixture
def client(shared):
    return shared.openai()


def messages(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def chat(client, text=CAPITAL, **fields):
    fields = {"model": "auto", "temperature": 0, "max_tokens": 24, **fields}
    return client.chat.completions.create(messages=messages(text), **fields)


def content(answer) -> str:
    return answer.choices[0].message.content


def joined(chunks) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_the_capital_of_france_is_paris(client):
    answer = chat(client)
    assert "Paris" in content(answer)
    assert answer.object == "chat.completion"
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_carries_the_same_answer_piece_by_piece(client):
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == content(whole)
    assert len([c for c in chunks if joined([c])]) > 1, "text came in one piece"
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert all(reason is None for reason in reasons[:-1])
    assert chunks[-1].choices == []
    # The joules of two runs are not the same.
    used = [u.model_dump(exclude={"energy"}) for u in (chunks[-1].usage, whole.usage)]
    assert used[0] == used[1]
    assert len({c.id for c in chunks}) == 1


def test_a_stream_has_no_usage_unless_asked(client):
    assert all(c.usage is None for c in chat(client, stream=True, max_tokens=4))


def test_the_system_message_and_earlier_turns_reach_the_model(client):
    plain = chat(client, "What is my name?")
    told = client.chat.completions.create(
        model="auto",
        messages=[
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "My name is Barnaby."},
            {"role": "assistant", "content": "Nice to meet you, Barnaby."},
            {"role": "user", "content": "What is my name?"},
        ],
        temperature=0,
        max_tokens=24,
    )
    assert "Barnaby" in content(told)
    assert "Barnaby" not in content(plain)
    assert told.usage.prompt_tokens > plain.usage.prompt_tokens


def test_the_same_seed_gives_the_same_text_and_another_seed_another(client):
    def sampled(seed):
        return content(chat(client, "Invent a name for a boat.", temperature=1.2, seed=seed))

    assert sampled(7) == sampled(7)
    assert len({sampled(seed) for seed in (1, 2, 3, 4)}) > 1


def test_a_stop_string_ends_the_answer_before_it(client):
    whole = content(chat(client))
    stopped = chat(client, stop=["Paris"])
    assert content(stopped) == whole[: whole.index("Paris")]
    assert stopped.choices[0].finish_reason == "stop"
    streamed = joined(chat(client, stop=["Paris"], stream=True))
    assert streamed == content(stopped), "a stream must not show part of a stop string"


def test_max_tokens_cuts_and_says_so(client):
    answer = chat(client, "Write a story about the sea.", max_tokens=3)
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


def test_log_probabilities_belong_to_the_tokens_of_the_answer(client):
    answer = chat(client, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert "".join(t.token for t in tokens) == content(answer)
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        best = max(token.top_logprobs, key=lambda t: t.logprob)
        assert math.isclose(best.logprob, token.logprob, abs_tol=1e-4), "temperature 0 is greedy"
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1.001


def test_a_logit_bias_can_force_a_token_whose_number_the_client_knows(client):
    def forced(token: int) -> str:
        return content(chat(client, max_tokens=3, logit_bias={str(token): 100}))

    texts = [forced(token) for token in (1000, 2000)]
    for text in texts:
        assert text == text[: len(text) // 3] * 3, f"{text!r} is not one token three times"
    assert texts[0] != texts[1]


@pytest.mark.parametrize("only_the_likeliest", [{"top_k": 1}, {"top_p": 0.001}, {"min_p": 1.0}])
def test_filters_that_leave_one_token_are_greedy_at_any_temperature(client, only_the_likeliest):
    greedy = content(chat(client))
    assert content(chat(client, temperature=2, seed=5, extra_body=only_the_likeliest)) == greedy


def test_penalties_keep_a_model_from_repeating_itself(client):
    loop = dict(model="auto", prompt="The cat sat. " * 4, max_tokens=16, temperature=0)
    plain = client.completions.create(**loop).choices[0].text
    penalised = client.completions.create(**loop, frequency_penalty=2).choices[0].text
    assert plain.count("cat") > penalised.count("cat")


def test_characters_of_several_tokens_arrive_whole(client):
    fields = dict(model="auto", prompt="日本語と絵文字: こんにちは 🦀🦀🦀🦀", max_tokens=24)
    fields["temperature"] = 0
    pieces = client.completions.create(stream=True, **fields)
    texts = [c.choices[0].text for c in pieces if c.choices]
    whole = client.completions.create(**fields).choices[0].text
    assert "".join(texts) == whole
    assert any(ord(c) > 0x7F for c in whole), "the model left the script that it was given"
    inside = "".join(texts[:-2])
    assert "\ufffd" not in inside, "half a character was sent"


def test_two_answers_to_one_request(client):
    fields = dict(n=2, temperature=1.2, seed=11, max_tokens=12)
    answer = chat(client, "Invent a name for a boat.", **fields)
    assert [c.index for c in answer.choices] == [0, 1]
    texts = [c.message.content for c in answer.choices]
    assert texts[0] != texts[1]
    again = chat(client, "Invent a name for a boat.", **fields)
    assert [c.message.content for c in again.choices] == texts
    streamed = ["", ""]
    for chunk in chat(client, "Invent a name for a boat.", stream=True, **fields):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_the_list_of_models_names_what_requests_may_name(client):
    ids = {m.id for m in client.models.list()}
    assert "auto" in ids
    for name in ids:
        assert client.models.retrieve(name).id == name
    generative = [i for i in ids if "minilm" not in i.lower()]
    for name in generative:
        assert content(chat(client, model=name, max_tokens=2))


def test_similar_texts_are_nearer_than_unrelated_ones(client):
    texts = [
        "The cat sleeps on the sofa.",
        "A kitten is napping on the couch.",
        "The central bank raised interest rates.",
    ]
    answer = client.embeddings.create(model="all-minilm-l6-v2", input=texts)
    cat, kitten, bank = (item.embedding for item in answer.data)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert all(len(v) == 384 for v in (cat, kitten, bank))

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b))

    assert math.isclose(dot(cat, cat), 1, abs_tol=1e-3)
    assert dot(cat, kitten) > dot(cat, bank) + 0.2
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    floats = client.embeddings.create(
        model="all-minilm-l6-v2", input=texts[0], encoding_format="float"
    )
    assert all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(floats.data[0].embedding, cat))


def test_a_completion_continues_raw_text(client):
    fields = dict(model="auto", prompt="The capital of France is", max_tokens=6, temperature=0)
    answer = client.completions.create(**fields)
    assert "Paris" in answer.choices[0].text
    assert answer.object == "text_completion"
    streamed = client.completions.create(stream=True, **fields)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == answer.choices[0].text


def test_eight_streams_at_once_give_what_each_gives_alone(shared):
    questions = [f"Name one thing that begins with the letter {c}." for c in "ABCDEFGH"]
    fields = {"model": "auto", "temperature": 0, "max_tokens": 12}

    async def one(client, question):
        stream = await client.chat.completions.create(
            messages=messages(question), stream=True, **fields
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    async def together():
        async with shared.async_openai() as client:
            return await asyncio.gather(*(one(client, q) for q in questions))

    alone = [content(chat(shared.openai(), q, **fields)) for q in questions]
    assert asyncio.run(together()) == alone


def test_the_answer_says_which_tier_gave_it_and_where_its_story_is(shared, client):
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=messages(CAPITAL), temperature=0, max_tokens=8
    )
    answer = raw.parse()
    about = answer.model_extra["homeostat"]
    assert about["tier"] == raw.headers["x-homeostat-tier"] == answer.model
    assert about["escalations"] == 0 and about["fallback"] is False
    request_id = raw.headers["x-request-id"]
    assert about["decision"] == f"/admin/v1/decisions/{request_id}"
    record = shared.record(request_id)
    assert record["id"] == request_id
    assert record["steps"][-1]["tier"] == about["tier"]
    assert record["steps"][-1]["completion_tokens"] == answer.usage.completion_tokens

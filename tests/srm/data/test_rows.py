"""Every form a row may take, and every way it may be wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest

from srm.data import Comparison, parse_row
from srm.data.rows import parse_responses
from srm.data.schema import RawRow
from srm.errors import UserError

U = {"role": "user", "content": "Why is the sky blue?"}
S = {"role": "system", "content": "Be brief."}
A = {"role": "assistant", "content": "Air scatters blue."}
B = {"role": "assistant", "content": "Because of the sea."}
U2 = {"role": "user", "content": "And snow?"}
BEGUN = {"role": "assistant", "content": "Well, "}
CALLS = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"at": "sky"}}}]}
TOOL = {"role": "tool", "content": "blue"}
TEXT = U["content"]
PLAIN = {"prompt": TEXT, "chosen": "Air scatters blue.", "rejected": "Because of the sea."}


def parse(fields: dict[str, Any]) -> Comparison:
    return parse_row(fields, where="pairs.jsonl line 7", id="pairs-7")


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        (PLAIN, TEXT),
        ({**PLAIN, "prompt": [S, U]}, [S, U]),
        ({"prompt": [U], "chosen": [A], "rejected": [B]}, [U]),
        ({"prompt": TEXT, "chosen": [A], "rejected": B["content"]}, TEXT),
        # Whole conversations.
        ({"chosen": [U, A], "rejected": [U, B]}, [U]),
        ({"chosen": [S, U, A], "rejected": [S, U, B]}, [S, U]),
        ({"chosen": [U, B, U2, A], "rejected": [U, B, U2, B]}, [U, B, U2]),
        ({"prompt": None, "chosen": [U, A], "rejected": [U, B]}, [U]),
        # Whole conversations beside a prompt that says the same, or that comes before them.
        ({"prompt": TEXT, "chosen": [U, A], "rejected": [U, B]}, [U]),
        ({"prompt": [U], "chosen": [U, A], "rejected": [U, B]}, [U]),
        ({"prompt": [S], "chosen": [U, A], "rejected": [U, B]}, [S, U]),
        ({"prompt": [S, U], "chosen": [B, U2, A], "rejected": [B, U2, B]}, [S, U, B, U2]),
        # Strings that share their prompt.
        ({"chosen": "Sky? Air scatters blue.", "rejected": "Sky? Because of the sea."}, "Sky?"),
        (
            {"chosen": f"\n\nHuman: {TEXT}\n\nAssistant: {A['content']}", "rejected": f"\n\nHuman: {TEXT}\n\nAssistant: {B['content']}"},
            [U],
        ),
        # Lists.
        ({"prompt": TEXT, "responses": [A["content"], B["content"]]}, TEXT),
        ({"prompt": [U], "responses": [[A], [B]]}, [U]),
        ({"responses": [[U, A], [U, B]]}, [U]),
        ({"prompt": TEXT, "responses": [A["content"], B["content"]], "scores": None, "ranks": [1, 2]}, TEXT),
    ],
)
def test_every_form_gives_the_same_comparison(fields: dict[str, Any], prompt: Any) -> None:
    row = parse(fields)
    assert row.prompt == prompt
    assert row.responses == ("Air scatters blue.", "Because of the sea.")
    assert row.pairs == ((0, 1, None),)
    assert (row.id, row.where) == ("pairs-7", "pairs.jsonl line 7")


@pytest.mark.parametrize(
    ("fields", "prompt", "responses"),
    [
        # Conversations that differ before the last turn, of one length and of two.
        ({"chosen": [U, A, U2, B], "rejected": [U, B, U2, A]}, [U], ([A, U2, B], [B, U2, A])),
        ({"chosen": [S, U, A, U2, B], "rejected": [S, U, B]}, [S, U], ([A, U2, B], "Because of the sea.")),
        ({"chosen": [U, A], "rejected": [U, A, U2, B]}, [U], ("Air scatters blue.", [A, U2, B])),
        ({"responses": [[U, A, U2, B], [U, A, U2, A], [U, B, U2, B]]}, [U], ([A, U2, B], [A, U2, A], [B, U2, B])),
        (
            {"chosen": f"\n\nHuman: {TEXT}\n\nAssistant: a\n\nHuman: b\n\nAssistant: c", "rejected": f"\n\nHuman: {TEXT}\n\nAssistant: d"},
            [U],
            ([{**A, "content": "a"}, {**U, "content": "b"}, {**A, "content": "c"}], "d"),
        ),
        # Conversations that answer different messages: each brings its own.
        ({"chosen": [U, A], "rejected": [U2, B]}, [], ([U, A], [U2, B])),
        ({"chosen": [S, U, A], "rejected": [S, U2, B]}, [S], ([U, A], [U2, B])),
        ({"chosen": [S, U, A], "rejected": [U, B]}, [], ([S, U, A], [U, B])),
        ({"chosen": [A, U, B], "rejected": [A, U2, B]}, [A], ([U, B], [U2, B])),
        ({"chosen": [A, U, B], "rejected": [B, U, B]}, [], ([A, U, B], [B, U, B])),
        ({"prompt": [S], "chosen": [U, A], "rejected": [U2, B]}, [S], ([U, A], [U2, B])),
        (
            {"prompt": [U, CALLS], "chosen": [TOOL, A], "rejected": [{**TOOL, "content": "red"}, A]},
            [U, CALLS],
            ([TOOL, A], [{**TOOL, "content": "red"}, A]),
        ),
        # Completions of several messages; what all share belongs to the prompt.
        ({"prompt": [U], "chosen": [CALLS, TOOL, A], "rejected": [B]}, [U], ([CALLS, TOOL, A], "Because of the sea.")),
        ({"prompt": TEXT, "chosen": [CALLS, TOOL, A], "rejected": "Because of the sea."}, [U], ([CALLS, TOOL, A], "Because of the sea.")),
        ({"prompt": [U], "chosen": [CALLS, TOOL, A], "rejected": [CALLS, TOOL, B]}, [U, CALLS, TOOL], (A["content"], B["content"])),
        ({"prompt": [U, CALLS], "chosen": [TOOL, A], "rejected": [TOOL, B]}, [U, CALLS, TOOL], (A["content"], B["content"])),
        # Answers that go on from the prompt's last words.
        ({"prompt": [U, BEGUN], "chosen": [A], "rejected": B["content"]}, [U, BEGUN], (A["content"], B["content"])),
        ({"prompt": [U, BEGUN], "chosen": [A, U2, B], "rejected": [B]}, [U, BEGUN], ([A, U2, B], B["content"])),
        (
            {"prompt": [U, BEGUN], "chosen": [A, U2, B], "rejected": [A, U2, A]},
            [U, {**A, "content": "Well, Air scatters blue."}, U2],
            (B["content"], A["content"]),
        ),
        ({"prompt": [U, BEGUN], "chosen": [U2, A], "rejected": [U2, B]}, [U, BEGUN, U2], (A["content"], B["content"])),
    ],
)
def test_responses_of_several_messages(fields: dict[str, Any], prompt: Any, responses: tuple[Any, ...]) -> None:
    row = parse(fields)
    assert (row.prompt, row.responses) == (prompt, responses)
    scored = list(parse_responses(RawRow(where="w", id="7", number=7, fields=fields)))
    assert [one.response for one in scored] == [rest if isinstance(rest, str) else strip(prompt, rest) for rest in responses]
    for one, response in zip(scored, responses, strict=True):
        # Whatever the split, nothing is lost between prompt and answer.
        said = response if isinstance(response, list) else [{"role": "assistant", "content": response}]
        answer = one.response if isinstance(one.response, list) else [{"role": "assistant", "content": one.response}]
        assert [*one.prompt, *answer] == [*prompt, *said]
        assert one.prompt[-1]["role"] != "assistant" or one.prompt[-1] == BEGUN


def strip(prompt: list[Any], response: list[Any]) -> Any:
    """The answer alone: from the first assistant message that answers someone."""
    first = 0 if prompt and response[0]["role"] == "assistant" else 1 + next(i for i, m in enumerate(response) if m["role"] != "assistant")
    while response[first]["role"] != "assistant":
        first += 1
    rest = response[first:]
    return rest[0]["content"] if len(rest) == 1 else rest


def test_one_conversation_is_its_last_answer_and_a_completion_is_all_of_it() -> None:
    whole = RawRow(where="w", id="7", number=7, fields={"response": [U, A, U2, B]})
    assert [(one.prompt, one.response) for one in parse_responses(whole)] == [([U, A, U2], B["content"])]
    behind = RawRow(where="w", id="7", number=7, fields={"prompt": [U], "response": [A, U2, B]})
    assert [(one.prompt, one.response) for one in parse_responses(behind)] == [([U], [A, U2, B])]


def test_other_columns_are_kept() -> None:
    row = parse({**PLAIN, "id": 12, "margin": 2, "subset": "easy", "section": "Chat", "source": None})
    assert row.id == "12"
    assert row.extra == {"subset": "easy", "section": "Chat", "source": None}
    assert row.pairs == ((0, 1, 2.0),)


def test_text_parts_join_and_null_keys_go() -> None:
    user = {"role": "user", "content": [{"type": "text", "text": "Why "}, {"type": "text", "text": "blue?"}], "tool_calls": None}
    assert parse({**PLAIN, "prompt": [user]}).prompt == [{"role": "user", "content": "Why blue?"}]


def test_tool_calls_need_no_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}
    prompt = parse({**PLAIN, "prompt": [U, call, {"role": "tool", "content": "blue"}]}).prompt
    assert prompt[1] == {"role": "assistant", "tool_calls": [{"name": "look"}], "content": ""}


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "responses"),
    [
        # The shared start ends at a space, never inside a word.
        ("Is it? Yesterday.", "Is it? Yes.", "Is it?", ("Yesterday.", "Yes.")),
        # Both keep a word.
        ("Is it? Yes", "Is it? Yes and no", "Is it?", ("Yes", "Yes and no")),
        ("Good", "Bad", "", ("Good", "Bad")),
    ],
)
def test_strings_share_a_prefix_of_whole_words(chosen: str, rejected: str, prompt: str, responses: tuple[str, str]) -> None:
    row = parse({"chosen": chosen, "rejected": rejected})
    assert (row.prompt, row.responses) == (prompt, responses)


def test_transcripts_keep_their_turns() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello. Human: no turn\n\nHuman: Bye"
    row = parse({"chosen": f"{start}\n\nAssistant: See you.", "rejected": f"{start}\n\nAssistant: Go."})
    assert [message["role"] for message in row.prompt] == ["user", "assistant", "user"]
    assert row.prompt[1]["content"] == "Hello. Human: no turn"
    assert row.responses == ("See you.", "Go.")


@pytest.mark.parametrize(
    ("ranking", "pairs"),
    [
        ({}, {(0, 1), (0, 2), (1, 2)}),
        ({"scores": [1.0, 3, 2]}, {(1, 2), (1, 0), (2, 0)}),
        ({"scores": [1, 3, 1]}, {(1, 0), (1, 2)}),
        ({"ranks": [2, 1, 2]}, {(1, 0), (1, 2)}),
        ({"ranks": [3, 1, 2]}, {(1, 2), (1, 0), (2, 0)}),
    ],
)
def test_rankings(ranking: dict[str, Any], pairs: set[tuple[int, int]]) -> None:
    row = parse({"prompt": TEXT, "responses": ["one", "two", "three"], **ranking})
    assert {pair[:2] for pair in row.pairs} == pairs
    assert all(margin is None for *_, margin in row.pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": ""}, "`chosen` is empty. Fix or delete the row"),
        ({"rejected": " \n"}, "`rejected` is empty"),
        ({"chosen": None}, "`chosen` is null"),
        ({"rejected": 5}, "`rejected` must be a string or a list of messages, got int"),
        ({"rejected": []}, "`rejected` is an empty list"),
        ({"rejected": PLAIN["chosen"]}, "`chosen` and `rejected` are identical"),
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": None}, "`prompt` is null"),
        ({"prompt": {}}, "`prompt` must be a string or a list of messages, got an object"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"prompt": ["hi"]}, '`prompt`: message 1 must be an object {"role": ..., "content": ...}, got a string'),
        ({"prompt": [{"from": "human", "value": "hi"}]}, "`prompt`: message 1 has no `role` (found: from, value)"),
        ({"prompt": [S, {"role": "human", "content": "hi"}]}, "`prompt`: message 2 has the unknown role 'human'; known are system"),
        ({"prompt": [{"role": "user"}]}, "`prompt`: message 1 must have a string `content`, got null"),
        ({"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "message 1 has content that is not text"),
        ({"prompt": [{"role": "user", "content": " "}]}, "`prompt` is empty"),
        ({"prompt": [A]}, "`prompt` ends with an assistant message, and holds nothing that it answers"),
        ({"prompt": [U, {**A, "content": " "}]}, "`prompt` ends with an assistant message that is empty, from which no answer can go on"),
        ({"prompt": [U, CALLS]}, "`prompt` ends with an assistant message that calls a tool, from which no answer can go on"),
        ({"prompt": "a \ud83d b"}, "`prompt` holds half a surrogate pair at character 3"),
        ({"chosen": "\ud83d"}, "`chosen` holds half a surrogate pair at character 1"),
        ({"margin": math.nan}, "`margin` must be finite, got nan"),
        ({"margin": -math.inf}, "`margin` must be finite, got -inf"),
        ({"margin": "2"}, "`margin` must be a number, got '2'"),
        ({"margin": True}, "`margin` must be a number, got True"),
        ({"id": [1]}, "`id` must be a string or an integer, got [1]"),
        ({"chosen": [U]}, "`chosen` and `rejected` must all be strings or all be whole conversations"),
        ({"chosen": [U, A], "rejected": [U, U2]}, "`rejected` ends with a message of the role user, and must end with the assistant's"),
        ({"chosen": [A, TOOL], "rejected": [B, U2, A]}, "`chosen` ends with a message of the role tool, and must end with the assistant's"),
        ({"chosen": [A, U2, {**B, "audio": "x"}], "rejected": [B]}, "`chosen`: message 3 has `audio`; only text can be scored"),
        ({"chosen": [A, U2, {**B, "refusal": "x"}], "rejected": [B]}, "`chosen`: message 3 has `refusal` beside its content"),
        ({"chosen": [{**A, "content": " "}, U2, B], "rejected": [B]}, "`chosen`: message 1 is empty"),
        ({"chosen": [A, U2, B], "rejected": "[{'role': 'assistant', 'content': 'No.'}]"}, "`rejected` is messages written as text"),
        ({"prompt": [U, A], "chosen": [U2, A], "rejected": [B]}, "`prompt` is not among the messages"),
        ({"prompt": [U, CALLS], "chosen": [A, U2, B], "rejected": [B]}, "an assistant message that calls a tool, from which no answer"),
        ({"prompt": "Else?", "chosen": [U, A], "rejected": [U, B]}, "`prompt` is not among the messages that `chosen` and `rejected`"),
        ({"prompt": [U2], "chosen": [U, A], "rejected": [U, B]}, "`prompt` is not among the messages"),
        ({"prompt": [S], "chosen": [{**S, "content": "x"}, U, A], "rejected": [{**S, "content": "x"}, U, B]}, "`prompt` is not among"),
    ],
)
def test_bad_pairs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse({**PLAIN, **change})
    text = str(caught.value)
    assert text.startswith("pairs.jsonl line 7: ")
    assert message in text
    assert text.endswith("or pass --skip_bad_rows to drop such rows and list them.")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": TEXT, "chosen": "a"}, "there is no `rejected` (columns found: prompt, chosen; expected prompt + chosen + rejected,"),
        ({"question": TEXT, "answer": "a"}, "there are no responses (columns found: question, answer; expected"),
        ({}, "columns found: none"),
        ({"Prompt": TEXT, "chosen": "Yes, it is", "rejected": "Yes, or no"}, "found: Prompt, chosen, rejected; rename 'Prompt' to prompt)"),
        ({"prompt": TEXT, "Chosen": "a", "rejected": "b"}, "prompt + responses; rename 'Chosen' to chosen)"),
        ({"messages": [U, A]}, "; `messages` is one whole conversation: a pair needs two conversations, `chosen` and `rejected`)"),
        ({"chosen": [A], "rejected": [B]}, "there is no `prompt` (columns found: chosen, rejected). Add the column"),
        ({"chosen": [U, A], "rejected": [U, A]}, "`chosen` and `rejected` are identical"),
        ({"chosen": [A, A], "rejected": [A, B]}, "there is no prompt, and no message that the response answers. Add a `prompt` column"),
        ({"chosen": "", "rejected": "Yes."}, "`chosen` is empty"),
        ({"chosen": "same words", "rejected": "same words"}, "`chosen` and `rejected` are identical"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant:"}, "`rejected` is empty"),
        ({"prompt": TEXT, "responses": "a"}, "`responses` must be a list, got str"),
        ({"prompt": TEXT, "responses": ["a"]}, "`responses` must hold at least 2, got 1"),
        ({"prompt": TEXT, "responses": ["a", ""]}, "`responses[1]` is empty"),
        ({"prompt": TEXT, "responses": ["a", "b", "a"]}, "`responses[0]` and `responses[2]` are identical but ranked differently"),
        ({"prompt": TEXT, "responses": ["a", [U2, A]]}, "`responses[0]` and `responses[1]` must all be strings or all be whole"),
        ({"responses": ["a", "b"]}, "there is no `prompt` (columns found: responses)"),
        ({"prompt": TEXT, "responses": ["a", "b"], "scores": [1]}, "`scores` must be a list of 2 numbers, one for each response, got 1"),
        ({"prompt": TEXT, "responses": ["a", "b"], "ranks": 1}, "`ranks` must be a list of 2 numbers, one for each response, got int"),
        ({"prompt": TEXT, "responses": ["a", "b"], "scores": [1, math.nan]}, "`scores[1]` must be finite, got nan"),
        ({"prompt": TEXT, "responses": ["a", "b"], "scores": [1, "2"]}, "`scores[1]` must be a number, got '2'"),
        ({"prompt": TEXT, "responses": ["a", "b"], "scores": [1, 1]}, "all 2 responses tie"),
        ({"prompt": TEXT, "responses": ["a", "b"], "scores": [2, 1], "ranks": [1, 2]}, "both `scores` and `ranks`"),
        ({"prompt": TEXT, "responses": ["a", "b"], "margin": 1.0}, "`margin` belongs to a chosen/rejected pair"),
    ],
)
def test_bad_rows(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_comparison_checks_its_pairs() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        Comparison(prompt="a", responses=("b", "c"), pairs=(), id="1", where="here")
    with pytest.raises(ValueError, match=r"must name two of the 2 responses, got \(0, 2\)"):
        Comparison(prompt="a", responses=("b", "c"), pairs=((0, 2, None),), id="1", where="here")


def responses(fields: dict[str, Any]) -> list[Any]:
    return list(parse_responses(RawRow(where="in.jsonl line 3", id="in-3", number=3, fields=fields)))


def test_a_plain_row_is_one_response() -> None:
    (row,) = responses({"prompt": [U], "response": [A], "errors": [1], "id": "x"})
    assert (row.id, row.row_id, row.row, row.label) == ("x", "x", 3, "response")
    assert (row.prompt, row.response, row.extra) == ([U], A["content"], {"errors": [1]})


def test_a_pair_is_two_responses() -> None:
    chosen, rejected = responses({**PLAIN, "subset": "easy"})
    assert [row.id for row in (chosen, rejected)] == ["in-3/chosen", "in-3/rejected"]
    assert chosen.prompt == rejected.prompt == TEXT
    assert chosen.row == rejected.row == 3
    assert chosen.extra == {"subset": "easy"}


def test_a_list_is_as_many_responses_and_may_repeat_itself() -> None:
    rows = responses({"prompt": TEXT, "responses": ["a", "b", "a"], "scores": [1, 1, 1]})
    assert [(row.id, row.label, row.response) for row in rows] == [("in-3/1", "1", "a"), ("in-3/2", "2", "b"), ("in-3/3", "3", "a")]
    assert rows[0].extra == {"scores": [1, 1, 1]}


def test_a_null_is_no_second_form() -> None:
    (row,) = responses({"prompt": TEXT, "response": "a", "responses": None, "chosen": None})
    assert row.response == "a"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": TEXT, "response": ""}, "`response` is empty"),
        ({"response": "a"}, "there is no `prompt`"),
        ({"prompt": TEXT, "text": "a"}, "there are no responses (columns found: prompt, text; expected prompt + response, prompt + chosen"),
        ({"prompt": TEXT, "responses": []}, "`responses` must hold at least 1, got 0"),
        ({"prompt": TEXT, "Response": "a"}, "; rename 'Response' to response)"),
        ({"conversations": [U, A]}, "; `conversations` is one whole conversation: rename it to response to score its last answer)"),
        ({"prompt": TEXT, "response": "a", "responses": ["b"]}, "there are `response` and `responses`, and a row has one form. Keep one"),
        ({**PLAIN, "response": "a"}, "there are `response` and `chosen` and `rejected`, and a row has one form"),
        ({"prompt": TEXT, "response": "a", "chosen": "b"}, "there are `response` and `chosen`, and a row has one form"),
    ],
)
def test_bad_rows_to_score(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        responses(fields)
    assert str(caught.value).startswith("in.jsonl line 3: ")
    assert message in str(caught.value)

"""Bodies of requests and answers, as the OpenAPI page shows them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag

__all__ = [
    "TAGS",
    "IdsRow",
    "OpenRLHFAnswer",
    "OpenRLHFRequest",
    "RewardAnswer",
    "RewardRequest",
    "SentenceReward",
    "SlimeRequest",
    "TextRow",
]


# A long list is not read on behind its first bad entry. Text is whole: what reads the JSON refuses half a surrogate pair.
Messages = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
# No model reads a million tokens at once, and checking many millions would hold up the other clients.
TokenIds = Annotated[list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]], Field(max_length=1_000_000), FailFast()]


def _form(text: Any) -> str | None:
    return "<str>" if isinstance(text, str) else "<list>" if isinstance(text, list) else None


# One way to read it is chosen first, so that what is wrong is said once.
Text = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[Messages, Tag("<list>")],
    Discriminator(_form, custom_error_type="text_or_messages", custom_error_message="Input should be a string or a list of messages"),
]
TAGS = frozenset({"<str>", "<list>", "<text>", "<ids>"})
"""What pydantic puts into the place of a problem to say how it read a field; no field has such a name."""


class TextRow(BaseModel):
    """A prompt and a response, as text or messages. The reward model's chat template is put around the prompt, and around the messages of a
    response that has several."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text = Field(description="a string, or a list of messages with `role` and `content`")
    response: Text = Field(
        description="what answers the prompt; one without text gets the prompt's reward. A list of messages ends with the assistant's"
    )
    tools: Messages | None = Field(None, description="JSON schemas of tools, for the chat template")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="what else the chat template is given, such as enable_thinking")


class IdsRow(BaseModel):
    """A prompt and a response as ids of the reward model's tokenizer, which are scored as they are. The text ends before the first eos or
    pad id."""

    model_config = ConfigDict(extra="forbid")

    prompt_ids: TokenIds = Field(min_length=1)
    response_ids: TokenIds


def _kind(row: Any) -> str:
    names = row if isinstance(row, dict) else vars(row) if isinstance(row, BaseModel) else ()
    return "<ids>" if "prompt_ids" in names or "response_ids" in names else "<text>"


Row = Annotated[Annotated[TextRow, Tag("<text>")] | Annotated[IdsRow, Tag("<ids>")], Discriminator(_kind)]


class RewardRequest(BaseModel):
    """Rows to score. Rows with equal prompts run their prompt once, also when they come in different requests."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"rows": [{"prompt": "Why is bread salty?", "response": "It needs salt. Flour alone is dull."}]},
                {"rows": [{"prompt": [{"role": "user", "content": "Is it warm?"}], "response": "It is."}]},
                {"rows": [{"prompt_ids": [1, 5, 9], "response_ids": [12, 7, 30, 2]}]},
            ]
        },
    )

    rows: Annotated[list[Row], FailFast()]


class SentenceReward(BaseModel):
    """One sentence. In a row of text: its `text`, and `start` and `end` in characters of the response, or of what the chat template
    writes of its messages where it has several. In a row of ids: no text, and `start` and `end` in tokens of the response."""

    text: str | None = None
    start: int
    end: int
    reward: float = Field(description="what the sentence changed in the model's value")
    weight: float = Field(description="its weight in the response reward")
    weighted_reward: float = Field(description="weight * reward")


class RowReward(BaseModel):
    reward: float = Field(description="the response reward")
    prompt_reward: float = Field(description="the prompt's part, which no sentence earns")
    prompt_weight: float = Field(description="the prompt's weight in the response reward")
    sentences: list[SentenceReward]


class RewardAnswer(BaseModel):
    """One reward a row, in the order of the rows."""

    rewards: list[RowReward]


class OpenRLHFRequest(BaseModel):
    """What OpenRLHF posts: the prompt within its template, and prompt and response as one text. Labels are not asked."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "query": ["<|im_start|>user\nIs it warm?<|im_end|>\n<|im_start|>assistant\nIt is.<|im_end|>"],
                    "prompts": ["<|im_start|>user\nIs it warm?<|im_end|>\n<|im_start|>assistant\n"],
                    "labels": [""],
                }
            ]
        }
    )

    query: Annotated[list[str], FailFast()]
    prompts: Annotated[list[str], FailFast()]
    labels: list[Any] = []


class SlimeRequest(BaseModel):
    """What slime posts, a sample at a time. A prompt that is text is within its template already. The label is not asked."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": "<|im_start|>user\nIs it warm?<|im_end|>\n<|im_start|>assistant\n",
                    "response": "It is.<|im_end|>",
                    "label": None,
                },
            ]
        }
    )

    prompt: Text
    response: str
    label: Any = None


class OpenRLHFAnswer(BaseModel):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[int]]

"""The token segmenter against the text segmenter: speed on one core, agreement, and disagreements by kind.

    python bench/token_segmenter.py --tokenizer smollm2-135m --input pairs_test.jsonl.gz --json bench/results/token_segmenter_cpu.json

Both cut the same responses. The token segmenter gets ids as tensors, as a policy's are: packed, and padded on the right. A boundary is
where a sentence begins inside a response, as a character.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import environment
import torch
from transformers import AutoTokenizer

from srm.data import read_responses
from srm.modeling.alias import resolve_model_name
from srm.segmentation import Segmenter, TokenSegmenter, make_segmenter, sentence_ends_from_offsets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="pairs whose responses to segment")
    parser.add_argument("--tokenizer", default="smollm2-135m")
    parser.add_argument("--responses", type=int, help="the first ones only")
    parser.add_argument("--batch", type=int, default=1024, help="responses of one call of the token segmenter")
    parser.add_argument("--rounds", type=int, default=3, help="the best of these counts")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    texts = [row.response for row in read_responses(arguments.input)]
    texts = [text for text in texts if text.strip()][: arguments.responses]
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name(arguments.tokenizer))
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    by_text, by_token = make_segmenter("punkt"), TokenSegmenter(tokenizer)
    rows = [torch.tensor(row) for row in encoded["input_ids"]]
    calls = [rows[start : start + arguments.batch] for start in range(0, len(rows), arguments.batch)]
    packed = [(torch.cat(call), torch.tensor([0, *map(len, call)]).cumsum(0)) for call in calls]
    padded = [torch.nn.utils.rnn.pad_sequence(call, batch_first=True, padding_value=min(by_token.end_ids)) for call in calls]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    seconds = {
        "text": best(arguments.rounds, lambda: [by_text.segment(text) for text in texts]),
        "token": best(arguments.rounds, lambda: [by_token.segment_packed(ids, cu) for ids, cu in packed]),
        "token_padded": best(arguments.rounds, lambda: [by_token.segment(ids) for ids in padded]),
    }
    ends = [found for ids, cu in packed for found in by_token.segment_packed(ids, cu).tolist()]
    result = {
        **environment.describe(),
        "tokenizer": arguments.tokenizer,
        "responses": len(texts),
        "responses_per_call": arguments.batch,
        "megabytes": round(megabytes, 2),
        "megabytes_per_second": {name: round(megabytes / spent, 2) for name, spent in seconds.items()},
        **compare(texts, encoded["offset_mapping"], ends, by_text),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")


def best(rounds: int, run: object) -> float:
    """Processor seconds of the fastest call."""
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        run()  # type: ignore[operator]  # a function without arguments
        spent.append(time.process_time() - began)
    return min(spent)


def compare(texts: list[str], offsets: list[list[tuple[int, int]]], ends: list[list[int]], segmenter: Segmenter) -> dict[str, object]:
    """F1 of the boundaries, as tokens, and the kinds of those that only one of the two has."""
    both, only = 0, {"text": Counter(), "token": Counter()}
    for text, spans, found in zip(texts, offsets, ends, strict=True):
        wanted = set(sentence_ends_from_offsets(segmenter.segment(text), spans, text=text).ends[:-1])
        got = set(found[:-1])
        both += len(wanted & got)
        for name, rest in (("text", wanted - got), ("token", got - wanted)):
            only[name].update(kind(text, spans[end][1]) for end in rest)
    errors = sum(sum(counter.values()) for counter in only.values())
    return {
        "boundaries_in_both": both,
        "boundary_f1": round(2 * both / (2 * both + errors), 5),
        "only_in_text_segmenter": dict(only["text"].most_common()),
        "only_in_token_segmenter": dict(only["token"].most_common()),
    }


def kind(text: str, cut: int) -> str:
    """What stands at a boundary: the first of these that fits."""
    before, after = text[:cut].rstrip(), text[cut:].lstrip()
    gap = text[len(before) : len(text) - len(after)]
    if before.count("```") % 2:
        return "inside fenced code"
    if not (before[-1:] + after[:1]).isascii():
        return "other script"
    if "\n" in gap:
        return "blank line" if gap.count("\n") > 1 else "line break"
    if before.endswith((".", "?", "!")):
        return "terminator and white space"
    return "split of a long sentence" if gap else "inside a word"


if __name__ == "__main__":
    main()

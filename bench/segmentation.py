"""Segmenters on one core: megabytes of UTF-8 a second on batches of texts and of ids, milliseconds for one response, agreement of the two.

    python bench/segmentation.py --input pairs_test.jsonl.gz --responses 5000 --json bench/results/segmentation_cpu.json

The ids are tensors when the clock starts, padded on the right, as a policy's are. The variants run in turn, and the best round counts.
"""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Callable

import environment
import torch
from transformers import AutoTokenizer

from srm.data import read_responses
from srm.modeling.alias import resolve_model_name
from srm.segmentation import Segmenter, TokenSegmenter, make_segmenter, sentence_ends_from_offsets

SHORT = 500
CALLS = 100


def main() -> None:
    parser = environment.parser(__doc__)
    parser.add_argument("--input", required=True, help="pairs whose responses to segment")
    parser.add_argument("--tokenizer", default="smollm2-135m")
    parser.add_argument("--responses", type=int, help="the first ones only")
    parser.add_argument("--batch", type=int, default=1024, help="responses of one call with ids")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    texts = [row.response for row in read_responses(arguments.input)]
    texts = [text for text in texts if text.strip()][: arguments.responses]
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_name(arguments.tokenizer))
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    by_text, by_line = make_segmenter("punkt"), make_segmenter("newline")
    by_token = TokenSegmenter(tokenizer, by_text)
    rows = [torch.tensor(row) for row in encoded["input_ids"]]
    calls = [
        torch.nn.utils.rnn.pad_sequence(rows[start : start + arguments.batch], batch_first=True, padding_value=min(by_token.end_ids))
        for start in range(0, len(rows), arguments.batch)
    ]
    short = next(text for text in texts if len(text) >= SHORT)[:SHORT]
    short_ids = torch.tensor([tokenizer(short, add_special_tokens=False)["input_ids"]])
    sieve = re.compile(r"[.?!]\s")
    # What this script holds by the million is no part of the garbage that a segmenter makes.
    gc.collect()
    gc.freeze()
    seconds = best(
        arguments.rounds,
        {
            "one expression, [.?!] and white space": lambda: [list(sieve.finditer(text)) for text in texts],
            "newline, texts": lambda: by_line.segment_batch(texts),
            "punkt, texts": lambda: by_text.segment_batch(texts),
            "punkt, ids": lambda: [by_token.segment(ids) for ids in calls],
            "one text": lambda: [by_text.segment(short) for _ in range(CALLS)],
            "one row of ids": lambda: [by_token.segment(short_ids) for _ in range(CALLS)],
        },
    )
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    result = {
        **environment.describe(),
        "tokenizer": arguments.tokenizer,
        "responses": len(texts),
        "responses_per_call_with_ids": arguments.batch,
        "megabytes": round(megabytes, 2),
        "megabytes_per_second": {name: round(megabytes / spent, 1) for name, spent in seconds.items() if not name.startswith("one ")}
        | {"one expression, [.?!] and white space": round(megabytes / seconds["one expression, [.?!] and white space"], 1)},
        "milliseconds_for_500_characters": {name: round(1e3 * seconds[name] / CALLS, 3) for name in ("one text", "one row of ids")},
        **compare(texts, encoded["offset_mapping"], [ends for ids in calls for ends in by_token.segment(ids).tolist()], by_text),
    }
    print(json.dumps(result, indent=2))
    environment.write(arguments.json, result)


def best(rounds: int, variants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Processor seconds of the fastest call of each variant."""
    spent = dict.fromkeys(variants, float("inf"))
    for _ in range(rounds):
        for name, run in variants.items():
            began = time.process_time()
            run()
            spent[name] = min(spent[name], time.process_time() - began)
    return spent


def compare(texts: list[str], offsets: list[list[tuple[int, int]]], ends: list[list[int]], segmenter: Segmenter) -> dict[str, int]:
    """Sentences found in the texts, and responses that come out otherwise as ids."""
    spans = segmenter.segment_batch(texts)
    wanted = [sentence_ends_from_offsets(*pair, text=text).ends for *pair, text in zip(spans, offsets, texts, strict=True)]
    return {
        "sentences": sum(map(len, spans)),
        "responses_cut_differently_as_ids": sum(want != found for want, found in zip(wanted, ends, strict=True)),
    }


if __name__ == "__main__":
    main()

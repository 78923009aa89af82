"""What binds a record of scores to the model that gave them."""

from __future__ import annotations

import os
from pathlib import Path

from srm.runs.model_files import hash_model_files


def test_content_counts_and_nothing_else(tmp_path: Path) -> None:
    read = ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "pytorch_model-00001-of-00002.bin", "code.py"]
    for name in (*read, "optimizer.pt", "training_args.bin", "scores.jsonl.meta.json", "trainer_state.json", "README.md"):
        (tmp_path / name).write_bytes(name.encode())
    before = hash_model_files(tmp_path)
    assert sorted(before) == sorted(read)
    # A copy has other times.
    for name in read:
        os.utime(tmp_path / name, (1, 1))
    assert hash_model_files(tmp_path) == before
    for name in read:
        # Of the same size, at the same time.
        (tmp_path / name).write_bytes(name.upper().encode())
        os.utime(tmp_path / name, (1, 1))
        changed = {file for file, digest in hash_model_files(tmp_path).items() if digest != before[file]}
        assert changed == {name}
        (tmp_path / name).write_bytes(name.encode())

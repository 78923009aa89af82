"""A model loads whole or not at all: what is missing, cut short or does not fit is one line, and never a random weight."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from srm import SentenceRewardModel, UserError
from srm.modeling.loading import load_backbone, load_tokenizer, load_whole

Weights = dict[str, Tensor]
Break = Callable[[Path], None]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tiny_backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model whose head says something, in one file, and in shards in the folder `sharded`."""
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.head.parameters():
            weight.normal_(std=0.3)
    path = tmp_path_factory.mktemp("saved")
    model.save_pretrained(path)
    model.save_pretrained(path / "sharded", max_shard_size="20KB")
    return path


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Callable[..., Path]:
    """broken(how, sharded=False): a copy of the saved model that `how` has broken."""

    def make(how: Break, sharded: bool = False) -> Path:
        path = shutil.copytree(saved / "sharded" if sharded else saved, tmp_path / "model", ignore=shutil.ignore_patterns("sharded"))
        how(path)
        return path

    return make


def weights(change: Callable[[Weights], Weights]) -> Break:
    return lambda path: save_file(change(load_file(path / WEIGHTS)), path / WEIGHTS, metadata={"format": "pt"})


def without(part: str) -> Break:
    return weights(lambda found: {name: weight for name, weight in found.items() if part not in name})


def with_weight(name: str, weight: Tensor) -> Break:
    return weights(lambda found: {**found, name: weight})


def cut(name: str, size: int) -> Break:
    """Keep the first `size` bytes of a file, or all but the last `-size`."""
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:size])  # type: ignore[func-returns-value]


def gone(name: str) -> Break:
    return lambda path: (path / name).unlink()


def edited(name: str, change: Callable[[Any], Any]) -> Break:
    def edit(path: Path) -> None:
        fields = json.loads((path / name).read_text())
        change(fields)
        (path / name).write_text(json.dumps(fields))

    return edit


def backbone(**fields: Any) -> Break:
    return edited("config.json", lambda config: config["backbone_config"].update(fields))


FAULTS: dict[str, tuple[Break, str]] = {
    "no MLP": (without("mlp"), r"6 missing \(backbone.layers.0.mlp.down_proj.weight, "),
    "no embeddings": (without("embed_tokens"), r"1 missing \(backbone.embed_tokens.weight\)"),
    "no head": (without("head."), r"6 missing \(head.key.bias, "),
    "half a head": (without("head.value.bias"), r"1 missing \(head.value.bias\)"),
    "an unknown weight": (with_weight("adapter.weight", torch.ones(2)), r"1 without a place in the model \(adapter.weight\)"),
    "a weight of another shape": (with_weight("backbone.norm.weight", torch.ones(3)), r"backbone.norm.weight \[3\], not \[32\]"),
    "a head that is no number": (with_weight("head.value.bias", torch.tensor([torch.nan])), r"head.value.bias holds NaN or infinity"),
    "a layer more in the config": (backbone(num_hidden_layers=3), r"9 missing \(backbone.layers.2"),
    "a layer fewer in the config": (backbone(num_hidden_layers=1), r"9 without a place in the model \(backbone.layers.1"),
    "another width in the config": (backbone(hidden_size=64), r"of another shape"),
    "no heads in the config": (backbone(num_attention_heads=0), r"no model could be loaded"),
    "a config of an unknown model": (backbone(model_type="nonsense"), r"no model could be loaded \(Unrecognized"),
    "a config without its backbone": (edited("config.json", lambda config: config.pop("backbone_config")), r"no model could be loaded"),
    "another pooling": (edited("config.json", lambda config: config.update(pooling="mean")), r"4 without a place in the model"),
    "an unknown pooling": (edited("config.json", lambda config: config.update(pooling="nonsense")), r"`pooling` must be one of"),
    "a config cut short": (cut("config.json", 100), r"not a valid JSON"),
    "a config of null": (lambda path: (path / "config.json").write_text("null"), r"no model could be loaded"),  # type: ignore[dict-item,return-value]
    "no config": (gone("config.json"), r"no model could be loaded"),
    "no weights": (gone(WEIGHTS), r"no model could be loaded \(Error no file named model.safetensors"),
    "weights cut short": (cut(WEIGHTS, -100), r"no model could be loaded \(SafetensorError"),
    "weights cut in their header": (cut(WEIGHTS, 50), r"no model could be loaded \(SafetensorError"),
    "an empty file of weights": (cut(WEIGHTS, 0), r"no model could be loaded \(SafetensorError"),
    "a tokenizer cut short": (cut("tokenizer.json", 200), r"no tokenizer could be loaded"),
    "a tokenizer gone": (gone("tokenizer.json"), r"no tokenizer could be loaded"),
}
FAULTS_OF_SHARDS: dict[str, tuple[Break, str]] = {
    "a shard missing": (gone("model-00002-of-00008.safetensors"), r"model-00002-of-00008.safetensors"),
    "a shard cut short": (cut("model-00002-of-00008.safetensors", -50), r"SafetensorError"),
    "an index cut short": (cut(INDEX, 100), r"no model could be loaded"),
    "an empty index": (edited(INDEX, lambda index: index.update(weight_map={})), r"no model could be loaded"),
    "an index without its map": (edited(INDEX, lambda index: index.pop("weight_map")), r"no model could be loaded"),
    "an index that names no file": (
        edited(INDEX, lambda index: index["weight_map"].update({"head.value.bias": "nowhere.safetensors"})),
        r"nowhere.safetensors",
    ),
}
CASES = [(how, False, said) for how, said in FAULTS.values()] + [(how, True, said) for how, said in FAULTS_OF_SHARDS.values()]


@pytest.mark.parametrize(("how", "sharded", "said"), CASES, ids=[*FAULTS, *FAULTS_OF_SHARDS])
def test_a_folder_that_is_not_whole_is_one_line(broken: Any, how: Break, sharded: bool, said: str, caplog: Any) -> None:
    path = broken(how, sharded)
    with pytest.raises(UserError, match=said) as raised:
        SentenceRewardModel.from_pretrained(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 800
    assert "LOAD REPORT" not in caplog.text


@pytest.mark.parametrize("part", ["mlp", "head."])
def test_so_it_is_through_automodel(broken: Any, part: str) -> None:
    with pytest.raises(UserError, match="missing"):
        AutoModel.from_pretrained(broken(without(part)))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_whole_folder_loads_as_it_was_saved(saved: Path, sharded: bool) -> None:
    loaded, info = SentenceRewardModel.from_pretrained(saved / "sharded" if sharded else saved, output_loading_info=True)
    assert not any(info.values())
    expected = load_file(saved / WEIGHTS)
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.state_dict().items())


def test_a_head_that_was_initialised_again_is_noticed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older releases of transformers call `_init_weights` for modules that were loaded."""
    initialise = SentenceRewardModel.initialize_weights

    def again(self: SentenceRewardModel) -> None:
        initialise(self)
        self._init_weights(self.head)

    monkeypatch.setattr(SentenceRewardModel, "initialize_weights", again)
    assert torch.equal(SentenceRewardModel.from_pretrained(saved).head.value.weight, load_file(saved / WEIGHTS)["head.value.weight"])
    monkeypatch.setattr(SentenceRewardModel, "_init_weights", lambda self, module: self.head.reset_parameters())
    with pytest.raises(UserError, match=r"the head in memory is not the one in the file \(head\.\w+\.\w+ differs\)"):
        SentenceRewardModel.from_pretrained(saved)


@pytest.mark.parametrize("how", ["a state dict in 16 bits", "a model in 16 bits"])
def test_the_head_is_saved_in_float32(saved: Path, tmp_path: Path, how: str) -> None:
    model = SentenceRewardModel.from_pretrained(saved)
    given = {name: weight.bfloat16() for name, weight in model.state_dict().items()}
    if how == "a state dict in 16 bits":
        model.save_pretrained(tmp_path, state_dict=given)
    else:
        model.to(torch.bfloat16).save_pretrained(tmp_path)
    dtypes = {(name.split(".")[0], weight.dtype) for name, weight in load_file(tmp_path / WEIGHTS).items()}
    assert dtypes == {("head", torch.float32), ("backbone", torch.bfloat16)}
    assert torch.equal(SentenceRewardModel.from_pretrained(tmp_path).head.value.weight, given["head.value.weight"].float())


# Backbones and policies


@pytest.fixture
def policy(tiny_policy_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_policy_dir, tmp_path / "policy")


def test_a_backbone_may_bring_heads_of_its_own(policy: Path) -> None:
    with_weight("score.weight", torch.ones(1, 32))(policy)
    assert {"lm_head.weight", "score.weight"} < load_file(policy / WEIGHTS).keys()
    assert torch.equal(load_backbone(str(policy)).norm.weight, load_file(policy / WEIGHTS)["model.norm.weight"])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (without("mlp.up_proj"), r"2 missing \(layers.0.mlp.up_proj.weight"),
        (with_weight("model.layers.0.mlp.extra", torch.ones(2)), r"1 without a place in the model \(model.layers.0.mlp.extra\)"),
        (edited("config.json", lambda config: config.update(num_hidden_layers=1)), r"9 without a place in the model"),
        (edited("config.json", lambda config: config.update(num_hidden_layers=3)), r"9 missing \(layers.2"),
        (with_weight("model.embed_tokens.weight", torch.ones(5, 32)), r"embed_tokens.weight \[5, 32\], not \[\d+, 32\]"),
        (cut(WEIGHTS, -10), r"SafetensorError"),
    ],
)
def test_a_backbone_is_loaded_whole(policy: Path, how: Break, said: str) -> None:
    how(policy)
    with pytest.raises(UserError, match=said):
        SentenceRewardModel.from_backbone(policy)


def test_a_policy_needs_its_head(policy: Path) -> None:
    load_whole(AutoModelForCausalLM.from_pretrained, str(policy))
    without("lm_head")(policy)
    with pytest.raises(UserError, match=r"1 missing \(lm_head.weight\)"):
        load_whole(AutoModelForCausalLM.from_pretrained, str(policy))


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "qwen3_moe", "mixtral"])
def test_tied_and_fused_weights_are_not_missing(tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig

    fields: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    fields |= {"num_key_value_heads": 1, "head_dim": 8, "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 8}
    fields = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2} if kind == "gpt2" else fields
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields, bos_token_id=None, eos_token_id=None, pad_token_id=None))
    model.save_pretrained(tmp_path)
    loaded, _ = load_whole(AutoModelForCausalLM.from_pretrained, str(tmp_path))
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in loaded.state_dict().items())
    load_backbone(str(tmp_path))
    if "experts" in "".join(load_file(tmp_path / WEIGHTS)):
        without("experts.1.")(tmp_path)
        with pytest.raises(UserError, match="of another shape"):
            load_backbone(str(tmp_path))


# Padding


def test_a_pad_token_without_an_embedding_is_refused(saved: Path, tiny_backbone_dir: Path, tmp_path: Path) -> None:
    for name, source in (("model", saved), ("backbone", tiny_backbone_dir)):
        path = shutil.copytree(source, tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        tokenizer.save_pretrained(path)
    said = r"pad token '<pad>' has the id (\d+), and the model has embeddings for 0 to \d+\. Choose a pad token that the model knows"
    with pytest.raises(UserError, match=said):
        SentenceRewardModel.from_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=said):
        SentenceRewardModel.from_backbone(tmp_path / "backbone")


# Code that comes with a model

CODE = "open({flag!r}, 'w').close()\nclass Own: pass\n"


@pytest.fixture
def with_code(policy: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A folder whose config, model and tokenizer name code of their own, and the file that appears once that runs."""
    flag = tmp_path / "has_run"
    (policy / "own.py").write_text(CODE.format(flag=str(flag)))
    maps = {name: f"own.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")}
    edited("config.json", lambda config: config.update(model_type="own_kind", auto_map=maps))(policy)
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    edited("tokenizer_config.json", lambda config: config.update(own))(policy)
    yield policy, flag
    assert not flag.exists()


COMMANDS = {
    "srm.cli.train": ["--model_name_or_path", "{model}", "--dataset_name", "{data}", "--output_dir", "{out}", "--use_cpu"],
    "srm.cli.score": ["--model", "{model}", "--input", "{data}", "--output", "{out}.jsonl"],
    "srm.cli.eval": ["--model", "{model}", "--suite", "{data}", "--output_dir", "{out}"],
    "srm.cli.serve": ["--model", "{model}", "--port", "0"],
    "srm.cli.rl": [
        "--model_name_or_path",
        "{model}",
        "--reward_model_path",
        "{saved}",
        "--dataset_name",
        "{data}",
        "--output_dir",
        "{out}",
    ],
}


@pytest.mark.parametrize("module", COMMANDS)
def test_no_command_asks_or_runs_code(with_code: Any, saved: Path, module: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    import importlib

    path, _ = with_code
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}\n')
    # transformers asks on stdin; a test that gets there fails here.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    places = {"model": path, "data": tmp_path / "rows.jsonl", "out": tmp_path / "out", "saved": saved}
    argv = [part.format(**places) for part in COMMANDS[module]]
    assert importlib.import_module(module).main(argv) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "needs code that comes with it, which never runs unasked" in said


def test_a_tokenizer_s_code_does_not_run_either(with_code: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    (with_code[0] / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        load_tokenizer(str(with_code[0]))


def test_weights_that_are_no_numbers_name_the_folder_that_was_given(tiny_backbone_dir, tmp_path):
    """Not the one that the backbone came from, which its configuration remembers."""
    model = SentenceRewardModel.from_backbone(tiny_backbone_dir)
    with torch.no_grad():
        next(model.backbone.layers[0].parameters()).fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "broken"))):
        SentenceRewardModel.from_pretrained(tmp_path / "broken").score(["Where?"], ["Here."])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"packng": "none"}, "from_pretrained has no argument `packng`"),
        ({"dtype": "int9"}, "`dtype` must be auto or a dtype of torch such as"),
    ],
)
def test_an_argument_that_does_not_exist_is_named(saved: Path, arguments: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        SentenceRewardModel.from_pretrained(saved, **arguments)
    assert "whole" not in str(raised.value)

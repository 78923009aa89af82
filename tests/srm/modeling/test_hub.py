"""What lies in a saved folder and on the hub: a card of ours, code for programs that do not import srm, and all that loading needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import pytest
import yaml

import srm
from srm import SentenceRewardModel
from srm.modeling.card import model_card
from srm.training import ModelArguments
from srm.training.lora import add_adapters

TESTS = Path(__file__).resolve().parents[2]
MINE = b"---\nlicense: mit\n---\n# Mine\n"
PUSHES = """
import sys
from srm import SentenceRewardModel
from srm.cli.train import main
from srm.training import ModelArguments
from srm.training.lora import add_adapters

full, backbone, rows, work = sys.argv[1:]
model = SentenceRewardModel.from_pretrained(full)
model.push_to_hub("me/full", tags=["short"])
model.push_to_hub("me/kept")
model.save_pretrained(f"{work}/saved", push_to_hub=True)
add_adapters(SentenceRewardModel.from_backbone(backbone), ModelArguments(use_peft=True, lora_r=2)).push_to_hub("me/adapter")
settings = "--max_steps 1 --save_steps 1 --use_cpu --learning_rate 1e-2 --push_to_hub --hub_strategy checkpoint --report_to none"
data = ["--model_name_or_path", backbone, "--dataset_name", rows, "--eval_dataset_name", rows]
assert main([*data, *settings.split(), "--output_dir", f"{work}/trained"]) == 0
assert main([*data, *settings.split(), "--output_dir", f"{work}/run", "--use_peft", "--hub_model_id", "me/trained-adapter"]) == 0
for name in ("me/full", "me/trained", "me/trained-adapter"):
    print("reward", SentenceRewardModel.from_pretrained(name).score(["Where is Paris?"], ["It is in France."])[0].reward)
"""
IMPORTS_NOTHING = """
import sys
sys.modules["srm"] = None
import transformers
what, folder = sys.argv[1:]
try:
    if what == "pipeline":
        transformers.pipeline("text-classification", model=folder, trust_remote_code=True)
    else:
        getattr(transformers, what).from_pretrained(folder, trust_remote_code=True)
except ImportError as error:
    print(error)
"""


def front_of(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def use_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


@pytest.fixture
def saved(awake_model: Callable[..., SentenceRewardModel], tmp_path: Path) -> Callable[[bool], Path]:
    def save(as_adapter: bool) -> Path:
        folder, model = tmp_path / "reward", awake_model()
        if as_adapter:
            pytest.importorskip("peft")
            add_adapters(model, ModelArguments(use_peft=True, lora_r=2)).save_pretrained(str(folder))
        else:
            model.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("as_adapter", [False, True])
def test_the_lines_of_use_in_the_card_run(
    as_adapter: bool, saved: Callable[[bool], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that was saved from Python is whole, and its card says how to load it."""
    folder = saved(as_adapter)
    card = (folder / "README.md").read_text()
    assert ("srm-kernels[peft]" in card) == as_adapter
    assert "[More Information Needed]" not in card
    code = run_path(str(folder / "modeling_srm.py"))
    assert set(code["__all__"]) <= code.keys()
    monkeypatch.chdir(folder.parent)
    exec(use_of(card))
    expected = SentenceRewardModel.from_pretrained(folder).score(["Where is Paris?"], ["It is in France. You should know that."])[0]
    assert expected.reward != 0
    assert capsys.readouterr().out.strip() == str(expected)


def test_a_card_that_is_there_stays(saved: Callable[[bool], Path]) -> None:
    folder = saved(False)
    (folder / "README.md").write_bytes(MINE)
    SentenceRewardModel.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "README.md").read_bytes() == MINE


def test_what_a_model_was_trained_on_goes_where_it_goes(saved: Callable[[bool], Path], tmp_path: Path) -> None:
    model = SentenceRewardModel.from_pretrained(saved(False))
    model.config.training = [("base model", "someone/base"), ("training data", "someone/pairs"), ("evaluation: accuracy", "0.8")]
    model.save_pretrained(tmp_path / "first")
    SentenceRewardModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    card = (tmp_path / "second" / "README.md").read_text()
    assert "| evaluation: accuracy | 0.8 |" in card
    assert (front_of(card)["base_model"], front_of(card)["datasets"]) == ("someone/base", "someone/pairs")
    assert "'second'" in card
    assert model_card(model.config, "second") == card


@pytest.mark.parametrize("what", ["AutoModel", "pipeline"])
def test_without_the_package_one_line_says_what_to_install(what: str, saved: Callable[[bool], Path], tmp_path: Path) -> None:
    """transformers by itself would advise to install a package called srm."""
    variables = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", IMPORTS_NOTHING, what, str(saved(False))]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert "this reward model's code is the package srm-kernels: pip install 'srm-kernels[srm]'" in done.stdout, done.stderr[-2000:]
    assert "pip install srm`" not in done.stdout


@pytest.mark.slow
def test_what_is_pushed_is_whole_and_has_our_card(
    saved: Callable[[bool], Path], tiny_backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(str(TESTS))
    from hub import Files, serve_hub

    hub: dict[str, Files] = {"me/kept": {"README.md": MINE}}
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"prompt": "Why?", "chosen": "It is. The cat sat.", "rejected": "No, it is wrong!"}\n' * 4)
    folder = saved(False)
    with serve_hub(hub) as address:
        variables = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_TOKEN": "hf_any",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        variables |= {"PYTHONPATH": str(Path(srm.__file__).parents[1]), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", PUSHES, str(folder), str(tiny_backbone_dir), str(rows), str(tmp_path)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("reward ")]
    folders = (folder, tmp_path / "trained", tmp_path / "run")
    expected = [SentenceRewardModel.from_pretrained(path).score(["Where is Paris?"], ["It is in France."])[0].reward for path in folders]
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0 not in found
    assert hub.pop("me/kept")["README.md"].startswith(MINE.rstrip())
    assert hub.keys() == {"me/full", "me/saved", "me/adapter", "me/trained", "me/trained-adapter"}
    for name, files in hub.items():
        assert {"config.json", "modeling_srm.py", "tokenizer.json", "tokenizer_config.json"} < files.keys(), name
        card = files["README.md"].decode()
        assert f"from_pretrained({name!r})" in use_of(card)
        assert "[More Information Needed]" not in card
        assert {"reward-model", "sentence-level", "srm"} <= set(front_of(card)["tags"])  # type: ignore[call-overload]
        if "trained" in name:
            assert "| training data | pairs.jsonl |" in card
            assert "| evaluation: accuracy | " in card
            # The last checkpoint, for a run that goes on elsewhere.
            assert "[More Information Needed]" not in files["last-checkpoint/README.md"].decode()
    assert "short" in front_of(hub["me/full"]["README.md"].decode())["tags"]  # type: ignore[operator]

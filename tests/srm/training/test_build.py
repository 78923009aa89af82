"""From settings to a model that is ready to train."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from srm.data import Comparison, encode_comparisons
from srm.errors import UserError
from srm.training import ModelArguments, RewardConfig
from srm.training.build import build_model


def build(path, packing="shared", **settings):
    return build_model(
        ModelArguments(model_name_or_path=str(path), attention_size=8, **settings), RewardConfig(output_dir="o", packing=packing)
    )


def test_the_settings_reach_the_model(tiny_backbone_dir):
    model = build(tiny_backbone_dir, packing="packed", pooling="sum", rope_theta=None, segmenter="newline", dtype="bfloat16")
    config = model.config
    assert (config.pooling, config.rope_theta, config.segmenter, config.packing) == ("sum", None, {"name": "newline"}, "packed")
    assert model.backbone.dtype == torch.bfloat16
    assert model.head.value.weight.dtype == torch.float32


def test_a_trained_model_keeps_its_variant(tiny_backbone_dir, tmp_path):
    build(tiny_backbone_dir, pooling="sum").save_pretrained(tmp_path)
    again = ModelArguments(model_name_or_path=str(tmp_path))
    assert build_model(again, RewardConfig(output_dir="o")).config.pooling == "sum"
    with pytest.raises(UserError, match="trained with pooling='sum', and --pooling asks for 'last'"):
        build(tmp_path, pooling="last")


def test_a_backbone_that_cannot_be_packed_is_refused_with_the_way_out(tiny_tokenizer_dir, tmp_path):
    """Tokens that mix outside attention: packing would leak one response into the next."""
    from transformers import AutoTokenizer, MambaConfig, MambaModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    MambaModel(MambaConfig(vocab_size=len(tokenizer), hidden_size=16, state_size=4, num_hidden_layers=1)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--packing none"):
        build(tmp_path)
    assert build(tmp_path, packing="none").config.packing == "none"


def test_positions_limit_the_length(tiny_tokenizer_dir, tiny_backbone_dir, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    GPT2Model(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = build(tmp_path)
    assert model.config.max_positions == 64
    comparison = Comparison(id="0", prompt="Hi", responses=("Yes. " * 60, "No. " * 60), pairs=((0, 1, 0.0),), where="here")
    for asked, limit in ((None, 64), (32, 32), (1024, 64)):
        rows, report = encode_comparisons([comparison], model.encoder, max_length=asked, positions=64, overlong="truncate_response")
        assert (rows[0].longest, report.max_length) == (limit, limit)
    for policy in ("drop", "error"):
        with pytest.raises(UserError) as raised:
            encode_comparisons([comparison], model.encoder, max_length=1024, positions=64, overlong=policy)
        assert "Raise --max_length" not in str(raised.value)


def test_another_chat_template_is_used_and_saved(tiny_backbone_dir, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    model = build(tiny_backbone_dir, chat_template_path=str(template))
    assert model.tokenizer.decode(model.encoder.encode_prompt("Is this right?")) == "[user] Is this right?\n[assistant] "
    model.save_pretrained(tmp_path / "saved")
    assert build(tmp_path / "saved").tokenizer.chat_template == template.read_text()
    with pytest.raises(UserError, match=r"--chat_template_path /nowhere\.jinja: cannot be read"):
        build(tiny_backbone_dir, chat_template_path="/nowhere.jinja")


def test_no_model_there():
    with pytest.raises(UserError, match="/nowhere/model"):
        build("/nowhere/model")


@pytest.fixture
def classifier_dir(tiny_backbone_dir, tmp_path):
    """A random reward model on a backbone as the tiny one."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_backbone_dir, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    AutoTokenizer.from_pretrained(tiny_backbone_dir).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_one_name_gives_backbone_and_score(classifier_dir):
    from safetensors.torch import load_file

    arguments = ModelArguments(init_value_from=str(classifier_dir), attention_size=8)
    assert arguments.model_name_or_path == str(classifier_dir)
    model = build_model(arguments, RewardConfig(output_dir="o"))
    assert torch.equal(model.head.value.weight, load_file(classifier_dir / "model.safetensors")["score.weight"])
    # As the settings of a run are written and read again.
    assert ModelArguments(init_value_from=str(classifier_dir), model_name_or_path=str(classifier_dir)) == ModelArguments(
        init_value_from=str(classifier_dir)
    )


def test_a_score_of_another_backbone_is_refused(classifier_dir, tiny_backbone_dir):
    with pytest.raises(UserError, match="its score means nothing on the states of another backbone"):
        ModelArguments(init_value_from=str(classifier_dir), model_name_or_path=str(tiny_backbone_dir))
    with pytest.raises(UserError, match="--head_init linear starts the value at random"):
        ModelArguments(init_value_from=str(classifier_dir), head_init="linear")


def test_a_reward_model_whose_score_is_left_out_is_named(classifier_dir, tiny_backbone_dir, caplog):
    assert not build(classifier_dir).head.value.weight.any()
    assert "is a classifier, and its output layer is left out. Where it is a reward model, --init_value_from" in caplog.text
    caplog.clear()
    build(tiny_backbone_dir)
    assert "classifier" not in caplog.text


def test_a_trained_model_keeps_its_head(tiny_backbone_dir, tmp_path):
    build(tiny_backbone_dir).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"--head_init: .* is a trained sentence reward model, whose head is kept"):
        build(tmp_path, head_init="linear")
    with pytest.raises(UserError, match=r"--init_value_from: .* is a trained sentence reward model, whose head is kept"):
        build_model(ModelArguments(init_value_from=str(tmp_path)), RewardConfig(output_dir="o"))


def test_adapters_on_a_reward_model_keep_its_score(classifier_dir, tmp_path):
    from srm.modeling import SentenceRewardModel

    arguments = ModelArguments(init_value_from=str(classifier_dir), attention_size=8, use_peft=True)
    adapted = build_model(arguments, RewardConfig(output_dir="o"))
    before = adapted.score(["Is it warm?"], ["It was warm there. Bread needs salt."])[0]
    assert before.reward != 0
    adapted.save_pretrained(str(tmp_path / "adapter"))
    after = SentenceRewardModel.from_pretrained(tmp_path / "adapter").score(["Is it warm?"], ["It was warm there. Bread needs salt."])[0]
    assert after.reward == pytest.approx(before.reward, abs=1e-5)
    assert [s.reward for s in after.sentences] == pytest.approx([s.reward for s in before.sentences], abs=1e-5)

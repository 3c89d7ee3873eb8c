"""Table 4's rows: trainings that differ in the attention and in nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from training_stages import steps

from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.training.build import TINY_SIZE, build_pipeline, convert
from ultragen.training.stage_order import train
from ultragen.training.stages.flow_matching import FlowMatchingStage
from ultragen.training.tiny import TINY

ROWS = {
    "full": (),
    "without-global": (("branches", ("hierarchical",)),),
    "swin": (("crossing", "shift"), ("lora_rank", 0)),
}
QUICK = replace(TINY, ultragen_sizes=TINY.ultragen_sizes[:1], render_every=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The parts that UltraGen's training starts from."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    pipe = build_pipeline(TINY_SIZE, ["a", "lake"])
    for part in ("vae", "text_encoder", "tokenizer", "base_transformer"):
        getattr(pipe, part).save_pretrained(folder / part)
    return folder


def train_row(out, base, attention, number=3, start=None):
    shutil.copytree(base, out / "model", dirs_exist_ok=True)
    return train("ultragen", steps(out, number), replace(QUICK, attention=attention), start)


def test_rows_see_the_same_clips_and_noise(base, tmp_path, monkeypatch):
    """The model's size, and how fast it is, change neither; the seed does."""
    seen = []
    loss, draw = FlowMatchingStage.loss, FlowMatchingStage.draw_sigmas

    def noted(self, model, batch):
        seen[-1] += [batch[2].sum().item(), batch[3].tolist()]
        return loss(self, model, batch)

    def drawn(self, *arguments):
        sigma = draw(self, *arguments)
        seen[-1].append(sigma.tolist())
        return sigma

    monkeypatch.setattr(FlowMatchingStage, "loss", noted)
    monkeypatch.setattr(FlowMatchingStage, "draw_sigmas", drawn)
    for name, attention in ROWS.items():
        seen.append([])
        model = train_row(tmp_path / name, base, attention)
        config = json.loads((model / "transformer" / "config.json").read_text())
        for key, value in attention:
            assert config[key] == (list(value) if isinstance(value, tuple) else value)
    assert len(seen[0]) == 9 and seen[0] == seen[1] == seen[2]
    UltraGenTransformer3DModel.from_pretrained(tmp_path / "swin" / "model" / "transformer")


def test_a_row_is_resumed_as_what_it_is(base, tmp_path, capsys):
    """Windows have no weights, so that a checkpoint of other ones would fit."""
    swin = (("crossing", "shift"),)
    train_row(tmp_path, base, swin, 2)
    with pytest.raises(ValueError, match="another attention: crossing shift, not none"):
        train_row(tmp_path, base, (), 3)
    train_row(tmp_path, base, swin, 3)
    assert "resumed at step 2" in capsys.readouterr().out


def test_an_ultragen_keeps_its_attention(base, tmp_path):
    """Weights that were trained with other windows are no start for an ablation."""
    start = tmp_path / "start"
    torch.manual_seed(0)
    transformer = convert(build_pipeline(TINY_SIZE, ["a"]).base_transformer, TINY_SIZE)
    transformer.save_pretrained(start / "transformer")
    for attention, said in (
        ((("crossing", "shift"),), "crossing grow, not crossing shift"),
        ((("branches", ("global",)),), "branches hierarchical and global, not branches global"),
    ):
        with pytest.raises(ValueError, match=said):
            train_row(tmp_path / "out", base, attention, start=start)
    same = (("crossing", "grow"), ("branches", ("hierarchical", "global")))
    train_row(tmp_path / "out", base, same, 1, start=start)

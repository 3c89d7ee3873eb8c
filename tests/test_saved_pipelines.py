"""Pipelines that were saved before the package had rooms load, and so do those saved since."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from diffusers.pipelines import pipeline_loading_utils
from diffusers.pipelines.pipeline_loading_utils import _fetch_class_library_tuple
from paths import ROOT
from tiny import tiny_pipeline

from ultragen.model.autoencoder import CompactAutoencoder
from ultragen.model.classifier import AttributeClassifier
from ultragen.model.text_encoder import ClauseTextEncoder
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.model.upscaler import UpscalerNetwork
from ultragen.pipeline import UltraGenPipeline

# What `model_index.json` held in versions before the rooms.
OLD = {
    "text_encoder": "ultragen.clauses",
    "transformer": "ultragen.transformer",
    "vae": "ultragen.autoencoder",
}
SAVABLE = (
    AttributeClassifier,
    ClauseTextEncoder,
    CompactAutoencoder,
    UltraGenTransformer3DModel,
    UpscalerNetwork,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    tiny_pipeline().save_pretrained(folder)
    return folder


def test_pipelines_of_today_and_from_before_the_rooms_load_in_a_fresh_process(saved, tmp_path):
    """Which knows nothing but the pipeline's own class: diffusers 0.42.1 imports no package that a
    folder names."""
    index = json.loads((saved / "model_index.json").read_text())
    assert {name: index[name][0] for name in OLD} == {
        "text_encoder": "ultragen.model.text_encoder",
        "transformer": "ultragen.model.transformer",
        "vae": "ultragen.model.autoencoder",
    }
    before = tmp_path / "before"
    shutil.copytree(saved, before)
    old = {name: [module, index[name][1]] for name, module in OLD.items()}
    (before / "model_index.json").write_text(json.dumps({**index, **old}))
    code = (
        "import sys; from ultragen import UltraGenPipeline\n"
        "for folder in sys.argv[1:]:\n"
        "    pipe = UltraGenPipeline.from_pretrained(folder)\n"
        "    parts = pipe.text_encoder, pipe.transformer, pipe.vae\n"
        "    print('found', *(type(part).__name__ for part in parts))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(saved), str(before)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = [line for line in ended.stdout.splitlines() if line.startswith("found")]
    assert found == 2 * ["found ClauseTextEncoder UltraGenTransformer3DModel CompactAutoencoder"]


@pytest.mark.parametrize("kind", SAVABLE, ids=lambda kind: kind.__name__)
def test_what_diffusers_writes_is_the_class_s_own_module(kind):
    """Not the name of a folder of `diffusers.pipelines` that one of our folders shares."""
    module = type("Part", (), {"__module__": kind.__module__})()
    library, _ = _fetch_class_library_tuple(module)
    assert library == kind.__module__
    assert getattr(import_module(library), kind.__name__) is kind


def test_no_room_is_called_like_a_pipeline_of_diffusers():
    from diffusers import pipelines

    folders = [path.name for path in (ROOT / "ultragen").rglob("*") if path.is_dir()]
    assert [name for name in folders if hasattr(pipelines, name)] == []


@pytest.mark.parametrize("module", [*OLD.values(), "ultragen.model.transformer"])
def test_what_diffusers_reads_beside_a_class_is_there(module):
    """The library's own class, which tells how a component is loaded."""
    kinds = pipeline_loading_utils.ALL_IMPORTABLE_CLASSES
    assert any(hasattr(import_module(module), name) for name in kinds)


@pytest.mark.parametrize("content", ["[]", '"x"', "{", ""])
def test_a_damaged_index_is_named_with_the_way_out(saved, tmp_path, content):
    shutil.copytree(saved, tmp_path / "pipeline")
    (tmp_path / "pipeline" / "model_index.json").write_text(content)
    with pytest.raises(OSError, match=r"model_index.json.*(git|again)"):
        UltraGenPipeline.from_pretrained(tmp_path / "pipeline")


def test_every_part_is_saved_in_the_shards_and_the_variant_that_are_asked_for(tmp_path):
    """diffusers 0.42.1 tells only those parts of them whose `save_pretrained` names them."""
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size="20KB", variant="fp16")
    for name in ("transformer", "text_encoder", "vae"):
        files = [path.name for path in (tmp_path / name).glob("*.safetensors")]
        assert len(files) > 1
        assert all(".fp16" in file for file in files)
    loaded = UltraGenPipeline.from_pretrained(tmp_path, variant="fp16")
    given = loaded.transformer.state_dict()
    assert all(torch.equal(given[k], v) for k, v in pipe.transformer.state_dict().items())

"""The objective of `train wan-distill`: which clips it is of, and that it is the embedded one."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import randomise
from torch import Tensor

from ultragen.dataset import encoders
from ultragen.dataset.encoders import CaptionEncoder
from ultragen.dataset.shard_files import TEXT, ShardWriter
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.training.processes import check_processes
from ultragen.training.prompt_texts import PromptTexts, embed_missing, read_prompts
from ultragen.training.stages.trajectories import Trajectories
from ultragen.training.stages.wan_distillation_stage import WanDistillStage, noise_levels
from ultragen.training.stages.wan_transformer_stage import pad
from ultragen.training.trained_parts import choose_trained, without_adapter
from ultragen.training.wan_options import LoraOptions
from ultragen.weights.random import SIZES

SIZE = (64, 64, 5)
PROMPTS = ("a lake", "hills at dawn", "a red canyon")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> PromptTexts:
    folder = tmp_path_factory.mktemp("texts")
    chance = torch.Generator().manual_seed(1)
    writer = ShardWriter(folder, TEXT)
    for number, prompt in enumerate((*PROMPTS, "blurry")):
        writer.add_text(prompt, torch.randn((3 + number, 16), generator=chance).bfloat16())
    writer.flush()
    return PromptTexts(folder, PROMPTS)


def stage(texts: PromptTexts, trained: str = "all", **changes) -> WanDistillStage:
    """On one process, with a clip a step if nothing else is said."""
    torch.manual_seed(0)
    student = UltraGenTransformer3DModel(**SIZES["tiny"].released)
    randomise(student)
    teacher = None if trained == "lora" else copy.deepcopy(student)
    choose_trained(student, trained, LoraOptions(16), torch.float32)
    batch = changes.get("batch_size", 1)
    given = {
        "negative": texts.of("blurry"),
        "size": SIZE,
        "steps": 3,
        "guidance_scale": 3.0,
        "shift": 5.0,
        "batch_size": 1,
        "group": batch,
        "places": range(batch),
        "seed": 5,
        "samples": None,
        "settings": {},
    }
    made = WanDistillStage(student, teacher, texts, **given | changes)
    made.device = torch.device("cpu")
    return made


def set_up(made: WanDistillStage, monkeypatch: pytest.MonkeyPatch) -> WanDistillStage:
    """As a training does, but with a teacher that lies on this process alone."""
    monkeypatch.setattr(
        "ultragen.training.stages.wan_distillation_stage.shard", lambda *arguments: None
    )
    made.setup(torch.device("cpu"), 0, 1)
    return made


def test_processes_share_the_prompts_out(files, tmp_path, monkeypatch):
    """One that comes late, or goes on with others, embeds its own share and no more; what comes of
    it are the embeddings of one process, to the last bit."""
    monkeypatch.setattr(encoders, "BATCH", 2)
    embedded = []
    encode = CaptionEncoder.encode

    def counted(self, captions):
        embedded.append(captions)
        return encode(self, captions)

    monkeypatch.setattr(CaptionEncoder, "encode", counted)
    read, alone, shared = [*PROMPTS, "blurry"], tmp_path / "alone", tmp_path / "shared"
    embed_missing(alone, files.base, read, check_processes())
    for number in (1, 0):
        state = SimpleNamespace(process_index=number, num_processes=2, device=torch.device("cpu"))
        embed_missing(shared, files.base, read, state)
    embed_missing(shared, files.base, read, check_processes())
    whole, *parts = embedded
    assert [len(part) for part in parts] == [2, 2] and parts[1] + parts[0] == whole
    for text in read:
        found = [PromptTexts(folder, PROMPTS).of(text) for folder in (alone, shared)]
        assert torch.equal(*found)


def bent(x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """A teacher whose trajectories are not straight."""
    told = text.float().mean((1, 2)).view(-1, 1, 1, 1, 1)
    return torch.sin(3 * x) * (1 + sigma.view(-1, 1, 1, 1, 1)) + told


def student_of(x: Tensor) -> Tensor:
    return 0.5 * torch.cos(x)


def test_what_is_learnt_is_what_the_embedded_model_learns(texts, monkeypatch):
    """Clips led by the teacher and by the student, one after the other, from the same noise."""
    monkeypatch.setattr(WanDistillStage, "guided", staticmethod(bent))
    made = set_up(stage(texts), monkeypatch)
    numbers = itertools.count(step=3)  # the samples with which clips begin

    def start(number: int) -> tuple[Tensor, Tensor]:
        assert number == 1
        sample = next(numbers)
        return made.noise(sample)[None], pad(texts[made.prompt(sample)], 512)[None]

    embedded = Trajectories(
        noise_levels(6, 5.0), start, bent, 1, lambda x, sigma, text: student_of(x)
    )
    led = []
    for sample in range(12):
        batch = made.samples(range(sample, sample + 1))
        latents, sigma, text, velocity = embedded.advance()
        for ours, theirs in (
            (batch.latents, latents),
            (batch.sigma, sigma),
            (batch.text, text),
            (batch.velocity, velocity),
        ):
            torch.testing.assert_close(ours, theirs)
        led.append(made.clips.is_led_by_student(0))

        def predict(hidden_states, **_):
            return (student_of(hidden_states),)

        losses = made.loss(predict, batch)
        expected = (student_of(latents) - velocity).square().mean()
        torch.testing.assert_close(losses["loss"], expected)
    assert led == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 3


def test_neighbours_are_at_different_steps_and_the_student_leads_half(texts, monkeypatch):
    made = set_up(stage(texts, group=8, batch_size=2, places=range(8)), monkeypatch)
    made.taught.guided = bent
    led, levels = [], []
    for step in range(27):
        for first in range(8 * step, 8 * step + 8, 2):
            batch = made.samples(range(first, first + 2))
            assert batch.places == (first % 8, first % 8 + 1)
            if step >= 3:
                led += [made.clips.is_led_by_student(place) for place in batch.places]
                levels.append((step, batch.steps))
            made.loss(lambda hidden_states, **_: (hidden_states,), batch)
    assert sum(led) == len(led) / 2
    for step in range(3, 27):
        assert {each for at, steps in levels if at == step for each in steps} == {0, 1, 2}


def test_the_teacher_is_guided_and_is_the_student_before_it_learns(texts, monkeypatch):
    """As a copy, and as the student without its adapter."""
    found = []
    for trained in ("all", "lora"):
        made = set_up(stage(texts, trained), monkeypatch)
        if trained == "lora":
            for name, parameter in made.model.named_parameters():
                if "lora_B.default" in name:
                    parameter.data.normal_()
        x, sigma = made.noise(0)[None], torch.tensor([0.7])
        text, negative = pad(texts[0], 512)[None], made.negative[None]
        with torch.no_grad(), without_adapter(made.model):
            told, plain = (made.velocity(made.model, x, sigma, t) for t in (text, negative))
        guided = made.guided(x, sigma, text)
        torch.testing.assert_close(guided, plain + 3 * (told - plain))
        with torch.no_grad():
            learnt = made.velocity(made.model, x, sigma, text)
        assert torch.equal(learnt, told) == (trained == "all")
        found.append(guided)
    torch.testing.assert_close(*found)


def test_a_teacher_without_guidance_is_asked_once(texts, monkeypatch):
    made = set_up(stage(texts, guidance_scale=1.0), monkeypatch)
    asked = []
    made.teacher.register_forward_hook(lambda *_: asked.append(1))
    made.samples(range(1))
    assert len(asked) == 2  # half steps


@pytest.mark.parametrize(("trained", "rate"), [("all", 3e-4), ("lora", 3e-3)])
def test_the_loss_falls(texts, monkeypatch, trained, rate):
    """For a teacher that is guided far away from what the student is at first."""
    given = {"batch_size": 4, "places": range(4), "group": 4, "guidance_scale": 30.0}
    made = set_up(stage(texts, trained, **given), monkeypatch)
    model = made.model
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    kept = made.samples(range(4))

    def loss() -> float:
        with torch.no_grad():
            learnt = made.velocity(model, kept.latents, kept.sigma, kept.text)
        return float((learnt - kept.velocity).square().mean())

    first = loss()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    for step in range(12):
        made.loss(model, made.samples(range(4 * step, 4 * step + 4)))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss() < 0.6 * first
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_clips_go_on_from_a_checkpoint_on_other_processes(texts, monkeypatch):
    """Eight places of one process become four of each of two."""

    def advance(made: WanDistillStage, first: int, places: range) -> dict[int, Tensor]:
        learnt = {}
        for place in places:
            batch = made.samples(range(first + place, first + place + 1))
            assert batch.places == (place,)
            made.loss(lambda hidden_states, **_: (hidden_states,), batch)
            learnt[place] = batch.velocity
        return learnt

    whole = set_up(stage(texts, group=8, places=range(8)), monkeypatch)
    for step in range(4):
        advance(whole, 8 * step, range(8))
    state = whole.clips.state_dict()
    expected = advance(whole, 32, range(8))
    for rank in range(2):
        places = range(4 * rank, 4 * rank + 4)
        part = set_up(stage(texts, group=8, places=places), monkeypatch)
        part.clips.load_state_dict({str(place): state[str(place)] for place in places})
        part.first = 32
        found = advance(part, 32, places)
        for place in places:
            torch.testing.assert_close(found[place], expected[place])


def test_a_place_without_a_clip_is_kept_as_such(texts):
    made = stage(texts, group=2, places=range(2))
    made.clips.at(1, 1)
    again = stage(texts, group=2, places=range(2))
    again.clips.load_state_dict(made.clips.state_dict())
    assert set(again.clips.clips) == {1}


def test_prompts_are_read_from_a_text_file(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_text("a  lake\n\n hills\r\na lake\n", encoding="utf-8-sig")
    assert read_prompts(path) == ("a lake", "hills")

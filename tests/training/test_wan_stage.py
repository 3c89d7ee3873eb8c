"""The objective of `train wan`: what is drawn for a sample, and what the loss is of."""

from __future__ import annotations

import pytest
import torch
from latent_files import SMALL, WIDE, write_latents
from tiny import randomise

from ultragen.dataset.shards import LatentDataset
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.ops.gradients import Recomputation
from ultragen.training.stages.wan_stage import WanStage
from ultragen.weights.random import SIZES


@pytest.fixture(scope="module")
def dataset(files, tmp_path_factory) -> LatentDataset:
    return LatentDataset(write_latents(tmp_path_factory.mktemp("latents"), files.base))


def stage(dataset: LatentDataset, batch_size: int = 1, group: int = 1, **changes) -> WanStage:
    torch.manual_seed(0)
    model = UltraGenTransformer3DModel(**SIZES["tiny"].released)
    clips = changes.pop("clips", dataset.by_size())
    given = {"seed": 5, "samples": None, "settings": {}, **changes}
    return WanStage(model, dataset, clips, batch_size, group, **given)


def test_a_model_that_answers_noise_minus_data_has_no_loss(dataset):
    made = stage(dataset, 2, 2)
    batch = made.samples(range(6, 8))

    def perfect(hidden_states, timestep, encoder_hidden_states, return_dict):
        sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
        expected = (1 - sigma) * batch.clean + sigma * batch.noise
        torch.testing.assert_close(hidden_states, expected)
        assert encoder_hidden_states.shape == (2, 512, 16)
        return (batch.noise - batch.clean,)

    losses = made.loss(perfect, batch)
    assert all(value == 0 for value in losses.values())
    assert made.tokens == 2 * batch.clean[0, 0].numel() // 4


def test_a_sample_is_the_same_in_whichever_batch(dataset):
    together = stage(dataset, 4, 4).samples(range(8, 12))
    for place in range(4):
        one = stage(dataset, 1, 4)
        one.setup(torch.device("cpu"), place, 4)
        alone = one.samples(range(8 + place, 9 + place))
        for name in ("clean", "noise", "sigma", "text"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[place])


def test_a_training_goes_on_with_larger_steps_than_it_had(dataset):
    """Six samples were drawn, and now two processes take two each."""
    stages = [stage(dataset, 2, 4) for _ in range(2)]
    for rank, made in enumerate(stages):
        made.setup(torch.device("cpu"), rank, 2)
    for first in range(6, 46, 4):
        one, two = (
            made.samples(range(first + 2 * rank, first + 2 * rank + 2))
            for rank, made in enumerate(stages)
        )
        assert one.clean.shape == two.clean.shape
        assert not torch.equal(one.noise, two.noise)


def test_clips_and_texts_are_those_of_the_dataset(dataset):
    made = stage(dataset)
    captions, dropped = set(), 0
    for number in range(120):
        size, clip = made.order[number]
        batch = made.samples(range(number, number + 1))
        assert size in (SMALL, WIDE)
        assert torch.equal(batch.clean[0], dataset.latents(clip).float())
        text = batch.text[0]
        text = text[: int(text.any(1).sum())]
        if torch.equal(text, dataset.empty_text().float()):
            dropped += 1
            continue
        [caption] = [k for k in (0, 1) if torch.equal(text, dataset.text(clip, k).float())]
        captions.add((clip, caption))
    assert len(captions) == 10  # each clip with either of its two
    assert 3 <= dropped <= 25  # a tenth of 120


def test_noise_levels_lie_where_the_released_schedule_has_its_steps(dataset):
    made = stage(dataset)
    sigmas = torch.cat([made.samples(range(i, i + 1)).sigma for i in range(400)])
    assert sigmas.min() > 0 and sigmas.max() <= 1
    quartiles = sigmas.quantile(torch.tensor([0.25, 0.5, 0.75]))
    expected = torch.tensor([5 * u / (1 + 4 * u) for u in (0.25, 0.5, 0.75)])
    torch.testing.assert_close(quartiles, expected, rtol=0, atol=0.06)


def test_the_loss_of_each_quarter_of_the_noise_levels(dataset):
    made = stage(dataset, 4, 4)
    batch = made.samples(range(4))
    batch.sigma[:] = torch.tensor([0.1, 0.2, 0.6, 1.0])
    errors = torch.tensor([1.0, 3.0, 5.0, 7.0])

    def wrong(**_):
        shape = (-1, 1, 1, 1, 1)
        return (batch.noise - batch.clean + errors.sqrt().view(shape),)

    losses = {name: round(value.item(), 4) for name, value in made.loss(wrong, batch).items()}
    assert losses == {
        "loss": 4,
        "loss/sigma_0.00-0.25": 2,
        "loss/sigma_0.50-0.75": 5,
        "loss/sigma_0.75-1.00": 7,
    }


def test_longer_clips_are_cut_to_their_beginning(dataset):
    """Wan's autoencoder is causal: these are the latents of the first frames."""
    [*numbers] = dataset.by_size()[SMALL]
    made = stage(dataset, clips={(64, 96, 5): numbers})
    batch = made.samples(range(1))
    whole = dataset.latents(made.order[0][1]).float()
    assert batch.clean.shape[2] == 2 < whole.shape[1]
    assert torch.equal(batch.clean[0], whole[:, :2])


def test_a_stage_without_samples_says_why(dataset):
    with pytest.raises(ValueError, match="no text encoder"):
        stage(dataset).sample_sheet()


def test_how_much_is_computed_again_and_where_it_waits_changes_no_gradient(dataset):
    made = stage(dataset, 2, 2)
    model = made.model
    randomise(model, strength=0.1)
    batch = made.samples(range(2))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        made.loss(model, batch)["loss"].backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    plain = gradients()
    for every in (1, 2):
        for host_memory in (False, True):
            kept = Recomputation(every, "all" if host_memory else "whole", host_memory)
            model.enable_gradient_checkpointing(kept)
            again = gradients()
            assert all(torch.equal(again[name], value) for name, value in plain.items())

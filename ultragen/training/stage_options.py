"""What differs between one training and another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..presets import EMBEDDED
from .build import EMBEDDED_SIZE, ModelSize
from .clip_sizes import BASE_DISTILL_SIZES, BASE_SIZES, DISTILL_SIZES, ULTRAGEN_SIZES, ClipSize


@dataclass(frozen=True)
class StageOptions:
    """What differs between the embedded model's training and a tiny one in the tests.

    Attributes:
        size: Widths and depths.
        base_sizes: Clips of the base stage.
        ultragen_sizes: Clips of the UltraGen stage.
        base_distill_sizes: Clips of the base model's distillation.
        distill_sizes: Clips of UltraGen's distillation.
        distill: Other settings of `DistillStage`.
        autoencoder: Other settings of `AutoencoderStage`.
        upscaler: Other settings of `UpscalerStage`.
        classifier: Other settings of `ClassifierStage`.
        attention: Other settings of the converted transformer, such as the paper's ablations;
            also in a training that is resumed.
        learning_rates: By stage.
        render_on: Devices that render clips while another one trains, such as `cuda:1`.
        render_share: Part of the time that goes into rendering where the training's own device
            renders.
        render_every: Steps with a kind of clip after which new ones are rendered, in place of that
            share: trainings of models that are not equally fast then see the same clips in the
            same steps.
        freeze_text: Whether the base stage leaves the text encoder's weights as they are, so that
            an UltraGen that was trained with it stays valid, unless `clauses` changes how it reads.
        data: Folder of clips that `dataset` encoded with the embedded model's autoencoder, which
            the base and the UltraGen stage are trained on instead of rendered ones.
        clauses: Whether the base stage has a text encoder that read whole prompts read clause by
            clause, which an UltraGen that was trained before has to learn. One that is built afresh
            reads so in any case.
        edition: Of the world that all stages draw their scenes from, see `world.scene.EDITIONS`.
    """

    size: ModelSize = EMBEDDED_SIZE
    base_sizes: tuple[ClipSize, ...] = BASE_SIZES
    ultragen_sizes: tuple[ClipSize, ...] = ULTRAGEN_SIZES
    base_distill_sizes: tuple[ClipSize, ...] = BASE_DISTILL_SIZES
    distill_sizes: tuple[ClipSize, ...] = DISTILL_SIZES
    distill: tuple[tuple[str, Any], ...] = (
        ("steps", 8),
        # What the student is compared with. At 2 its teacher has a tenth less fine detail (HD-MSE).
        ("guidance_scale", 3.0),
        ("negative_prompt", EMBEDDED.negative_prompt),
    )
    autoencoder: tuple[tuple[str, Any], ...] = (("batch_size", 48),)
    upscaler: tuple[tuple[str, Any], ...] = (("batch_size", 32),)
    classifier: tuple[tuple[str, Any], ...] = (("batch_size", 64),)
    attention: tuple[tuple[str, Any], ...] = ()
    learning_rates: tuple[tuple[str, float], ...] = (
        ("autoencoder", 5e-4),
        ("decoder", 3e-4),
        ("base", 1e-3),
        ("ultragen", 6e-4),
        ("base-distill", 2e-4),
        ("distill", 2e-4),
        ("upscaler", 1e-3),
        ("classifier", 1e-3),
    )
    render_on: tuple[str, ...] = ()
    render_share: float = 0.45
    render_every: int | None = None
    freeze_text: bool = False
    clauses: bool = False
    edition: int = 1
    data: Path | None = None

    def with_batches(self, scale: float) -> StageOptions:
        """The same with the batches of all stages scaled, to one example at least."""

        def scaled(sizes: tuple[ClipSize, ...]) -> tuple[ClipSize, ...]:
            return tuple(size.with_batch(scale) for size in sizes)

        def of(settings: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
            batch = max(1, round(scale * dict(settings)["batch_size"]))
            return (*settings, ("batch_size", batch))

        return replace(
            self,
            base_sizes=scaled(self.base_sizes),
            ultragen_sizes=scaled(self.ultragen_sizes),
            base_distill_sizes=scaled(self.base_distill_sizes),
            distill_sizes=scaled(self.distill_sizes),
            autoencoder=of(self.autoencoder),
            upscaler=of(self.upscaler),
            classifier=of(self.classifier),
        )

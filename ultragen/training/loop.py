"""The one training loop: every stage is trained by it, on one or several GPUs or on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, reduce, set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor

from ..hardware import fast_bfloat16
from .checkpoint import recover_folder, replace_folder
from .graphs import GraphedGradients
from .muon import MuonAdamW, hidden_matrices
from .stage import Every, Progress, Stage, TrainingConfig


def check_processes() -> PartialState:
    """The processes of this training, on CPUs too: accelerate takes several that have no GPU for
    one each, unless the first thing that asks says otherwise."""
    return PartialState(cpu=not torch.accelerator.is_available())


def average(gradients: Sequence[Tensor]) -> None:
    """Replaces gradients by their mean over all processes, all in one exchange."""
    together = torch.cat([gradient.flatten() for gradient in gradients])
    mean = reduce(together, reduction="mean")
    parts = mean.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


class Trainer:
    """Trains a stage.

    Checkpoints lie in `out/checkpoint` and hold weights, averaged weights, optimiser, random
    states and progress; a run that finds one goes on from there, at the same step.
    """

    def __init__(self, stage: Stage, config: TrainingConfig) -> None:
        self.stage, self.config = stage, config
        self.peak_rate = config.learning_rate or 5e-4
        check_processes()
        self.accelerator = Accelerator(
            mixed_precision="bf16" if torch.cuda.is_available() or fast_bfloat16() else "no",
            log_with="tensorboard",
            project_dir=config.out,
        )
        # Every process draws other data and noise.
        set_seed(config.seed, device_specific=True)
        parameters = [p for p in stage.model.parameters() if p.requires_grad]
        hidden = hidden_matrices(stage.model)
        inside = set(map(id, hidden))
        optimizer = MuonAdamW(
            hidden,
            [p for p in parameters if id(p) not in inside],
            lr=self.peak_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.99),
            fused=torch.cuda.is_available(),
        )
        # Not wrapped for several processes: gradients are averaged here, once a step, which leaves
        # the step itself to be recorded.
        self.model = self.accelerator.prepare_model(stage.model, evaluation_mode=True)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.parameters = parameters
        if self.accelerator.num_processes > 1:
            broadcast([p.detach() for p in parameters])
        self.recorded: GraphedGradients | None = None
        if stage.recordable and torch.cuda.is_available():
            self.recorded = GraphedGradients(
                lambda batch: stage.loss(self.model, batch), parameters, self.accelerator.autocast
            )
        self.ema = EMAModel(
            parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.8, foreach=True
        )
        self.ema.to(self.accelerator.device)
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.ema, self.progress, *stage.companions)
        self.due_checkpoint = Every(config.checkpoint_minutes)
        self.due_sample = Every(config.sample_minutes)

    @property
    def checkpoint(self) -> Path:
        return self.config.out / "checkpoint"

    def train(self) -> Path:
        """Trains until the minutes are over; returns the folder of the exported weights."""
        accelerator, config = self.accelerator, self.config
        accelerator.init_trackers("logs")
        if accelerator.is_main_process:
            recover_folder(self.checkpoint)
        accelerator.wait_for_everyone()
        if self.checkpoint.is_dir():
            accelerator.load_state(str(self.checkpoint))
            self.ema.to(accelerator.device)  # registered objects are loaded to the CPU
            accelerator.print(f"resumed at step {self.progress.step}", flush=True)
        try:
            self.stage.setup(
                accelerator.device, accelerator.process_index, accelerator.num_processes
            )
            self.train_steps()
        finally:
            self.stage.teardown()
        if accelerator.is_main_process:
            self.save()
            self.write_samples()
        accelerator.wait_for_everyone()
        return config.out / "export"

    def train_steps(self) -> None:
        """Steps, checkpoints and samples until the time is over."""
        done = self.fraction()
        while done < 1 and not self.run_is_over():
            if self.progress.step == self.config.profile_step:
                self.profile(done)
            self.train_step(done)
            if self.accelerator.is_main_process and self.due_checkpoint():
                self.save()
            if self.accelerator.is_main_process and self.due_sample():
                self.write_samples()
            done = self.fraction()

    def fraction(self) -> float:
        """Part of the training that is done, the same in all processes."""
        part = self.progress.seconds / (60 * self.config.minutes)
        if self.config.max_steps is not None:
            part = max(part, self.progress.step / self.config.max_steps)
        if self.accelerator.num_processes > 1:
            part = broadcast(torch.tensor(part, device=self.accelerator.device)).item()
        return part

    def run_is_over(self) -> bool:
        over = (
            self.config.run_minutes is not None
            and self.progress.run_seconds > 60 * self.config.run_minutes
        )
        if self.accelerator.num_processes > 1:
            over = bool(broadcast(torch.tensor(float(over), device=self.accelerator.device)))
        return over

    def learning_rate(self, done: float) -> float:
        """Warm-up, then constant, then a linear fall over the last part of the minutes."""
        config = self.config
        warm = min(1.0, (self.progress.step + 1) / config.warmup_steps)
        fall = min(1.0, (1 - done) / config.decay) if config.decay else 1.0
        return self.peak_rate * warm * max(fall, 0.01)

    def train_step(self, done: float) -> None:
        rate = self.learning_rate(done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        losses = self.gradients(self.stage.batch(self.progress.step))
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimizer.step()
        if self.recorded is None:  # recorded steps write their gradients over
            self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.parameters)
        self.progress.step += 1
        if self.progress.step % self.config.log_steps == 0:
            self.log({**losses, "gradient_norm": norm}, rate)

    def gradients(self, batch: Any) -> dict[str, Tensor]:
        """Losses of this process's batch; in the parameters are the gradients of all processes'."""
        if self.recorded:
            losses = self.recorded(batch)
        else:
            with self.accelerator.autocast():
                losses = self.stage.loss(self.model, batch)
            self.accelerator.backward(losses["loss"])
        if self.accelerator.num_processes > 1:
            average([p.grad for p in self.parameters if p.grad is not None])
        return losses

    def profile(self, done: float, steps: int = 4) -> None:
        """Trains some steps and prints where their time went."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(steps):
                self.train_step(done)
        device = "device" if torch.cuda.is_available() else "cpu"
        table = profiler.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=30)
        self.accelerator.print(table, flush=True)

    def log(self, values: dict[str, Tensor], rate: float) -> None:
        scalars = {name: float(value.detach()) for name, value in values.items()}
        # A loss that is not finite would spoil the averaged weights too: stop at once.
        if not all(value == value and abs(value) < float("inf") for value in scalars.values()):
            raise FloatingPointError(
                f"Step {self.progress.step}: {scalars}. The last good state is {self.checkpoint}; "
                "lower the learning rate."
            )
        self.accelerator.log({**scalars, "learning_rate": rate}, step=self.progress.step)
        text = " ".join(f"{name} {value:.4f}" for name, value in scalars.items())
        seconds = self.progress.seconds
        self.accelerator.print(
            f"{seconds:7.1f} s  step {self.progress.step:6d}  {text}  lr {rate:.1e}", flush=True
        )

    def save(self) -> None:
        """Saves a checkpoint, and exports the averaged weights."""
        replace_folder(self.checkpoint, lambda folder: self.accelerator.save_state(str(folder)))
        self.with_average(lambda: self.stage.export(self.config.out / "export"))

    def write_samples(self) -> None:
        """Writes a picture of what there is. A training does not end for want of one."""
        try:
            image = self.with_average(self.stage.sample_sheet)
        except Exception as error:  # of whatever the pipeline and the device may raise
            self.accelerator.print(f"No sample sheet: {type(error).__name__}: {error}", flush=True)
            return
        path = self.config.out / "samples" / f"{self.progress.step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                pixels = np.array(image.convert("RGB"))[None]
                tracker.log_images({"samples": pixels}, step=self.progress.step, dataformats="NHWC")

    def with_average(self, action: Any) -> Any:
        """Calls `action` while the stage's model holds the averaged weights."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        self.stage.model.eval()
        try:
            # Eager: compiled for the training batch, blocks would be compiled anew for each sample.
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                return action()
        finally:
            self.ema.restore(self.parameters)
            self.stage.model.train()

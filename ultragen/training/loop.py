"""The one training loop: every stage is trained by it, on a CPU, on one GPU or on those of several
hosts."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import TrackioTracker
from accelerate.utils import broadcast, reduce, set_seed
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ..files import first_line
from ..hardware import fast_bfloat16
from .checkpoint import (
    check_record,
    load_parts,
    recover_folder,
    replace_folder,
    save_parts,
    write_record,
)
from .graphs import GraphedGradients
from .meters import Means, Speed
from .optimizers import build_optimizer, set_learning_rate
from .processes import Termination, average, check_processes, in_how_many
from .sharding import ShardedState, local, part_again, shard
from .stage import Every, Progress, Stage, TrainingConfig

Result = TypeVar("Result")


class Agreement(NamedTuple):
    """What all processes do next.

    Attributes:
        done: Part of the training that is done.
        over: Whether the run's minutes are.
        save: Whether a checkpoint is due.
        sample: Whether a sample sheet is due.
        stop: In how many processes the run was asked to end.
    """

    done: float
    over: float
    save: float
    sample: float
    stop: float


class Trainer:
    """Trains a stage.

    Checkpoints lie in `out/checkpoint` and hold weights, averaged weights, optimiser, random
    states and progress; a run that finds one goes on from there, at the same step.

    Raises:
        ValueError: The stage and the settings do not fit together.
        OSError: A package is missing.
    """

    def __init__(self, stage: Stage, config: TrainingConfig) -> None:
        self.stage, self.config = stage, config
        self.peak_rate = config.learning_rate or 5e-4
        if stage.blocks and not stage.samples_per_batch:
            raise ValueError(
                "A stage with blocks draws its samples by numbers: samples_per_batch is 0."
            )
        check_processes()
        fast = torch.cuda.is_available() or fast_bfloat16()
        half = config.precision == "bfloat16" or (config.precision is None and fast)
        self.sharded = bool(stage.blocks)
        self.accelerator = Accelerator(
            # Weights in parts are gathered in the type that is computed in.
            mixed_precision=None if self.sharded else "bf16" if half else "no",
            log_with=self.trackers(),
            project_dir=config.out,
        )
        # Every process draws other data and noise.
        set_seed(config.seed, device_specific=True)
        if self.sharded:
            stage.compute_dtype = torch.bfloat16 if half else torch.float32
            shard(stage.model, stage.blocks, self.accelerator.device, stage.compute_dtype)
        self.parameters = [p for p in stage.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(stage.model, config, self.peak_rate)
        self.model = stage.model
        if not self.sharded:
            # Not wrapped for several processes: gradients are averaged here, once a step, which
            # leaves the step itself to be recorded.
            self.model = self.accelerator.prepare_model(stage.model, evaluation_mode=True)
            self.optimizer = self.accelerator.prepare_optimizer(self.optimizer)
            if self.accelerator.num_processes > 1:
                broadcast([p.detach() for p in self.parameters])
        self.recorded: GraphedGradients | None = None
        if stage.recordable and torch.cuda.is_available() and config.accumulation == 1:
            self.recorded = GraphedGradients(
                lambda batch: stage.loss(self.model, batch),
                self.parameters,
                self.accelerator.autocast,
            )
        self.ema: EMAModel | None = None
        if config.average:
            self.ema = EMAModel(
                self.parameters, decay=config.ema_decay, use_ema_warmup=True, power=0.8,
                foreach=True,
            )  # fmt: skip
            self.ema.to(self.accelerator.device)
        self.progress = Progress()
        self.companions = [x for x in (self.ema, self.progress, *stage.companions) if x is not None]
        if not self.sharded:
            self.accelerator.register_for_checkpointing(*self.companions)
        self.due_checkpoint = Every(config.checkpoint_minutes, config.checkpoint_steps)
        self.due_sample = Every(config.sample_minutes, config.sample_steps)
        self.termination = Termination()
        self.means, self.speed = Means(), Speed(self.accelerator.device)
        self.tokens = 0  # of this process in this run
        self.figures: dict[str, Tensor] = {}  # of the last step

    def trackers(self) -> list[Any]:
        """What accelerate logs to."""
        trackers: list[Any] = [name for name in self.config.trackers if name != "trackio"]
        if "trackio" in self.config.trackers:
            if find_spec("trackio") is None:
                raise OSError(
                    "Tracking with trackio needs one more package: pip install -e '.[trackio]' in "
                    "the clone's folder."
                )
            out = self.config.out.resolve()
            # A training that is resumed goes on in its own run.
            trackers.append(TrackioTracker(out.parent.name, name=out.name, resume="allow"))
        return trackers

    @property
    def checkpoint(self) -> Path:
        return self.config.out / "checkpoint"

    @property
    def exported(self) -> Path:
        return self.config.out / "export"

    @property
    def saves(self) -> bool:
        """Whether this process takes part in saving and sampling."""
        return self.sharded or self.accelerator.is_main_process

    def train(self) -> Path:
        """Trains until the minutes are over; returns the folder of the exported weights.

        Raises:
            FloatingPointError: A loss is not finite.
            OSError: What is saved could not be written.
            ValueError: The checkpoint is of another training.
            SystemExit: SIGTERM came; a checkpoint is saved.
        """
        accelerator = self.accelerator
        accelerator.init_trackers("logs")
        with self.termination:
            self.resume()
            try:
                self.stage.setup(
                    accelerator.device, accelerator.process_index, accelerator.num_processes
                )
                stopped = self.train_steps()
            finally:
                self.stage.teardown()
            self.check_finite()
            if self.saves:
                self.save(export=not stopped)
                if not stopped:
                    self.write_samples()
            accelerator.wait_for_everyone()
        if stopped:
            accelerator.print(
                f"Asked to end: step {self.progress.step} is saved in {self.checkpoint}, and the "
                "same command goes on from there.",
                flush=True,
            )
            raise SystemExit(128 + signal.SIGTERM)
        return self.exported

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one."""
        accelerator = self.accelerator
        if accelerator.is_main_process:
            recover_folder(self.checkpoint)
            recover_folder(self.exported)
        accelerator.wait_for_everyone()
        seen = in_how_many(self.checkpoint.is_dir())
        if not seen:
            return
        if seen < accelerator.num_processes:
            raise ValueError(
                f"{accelerator.num_processes - seen} of {accelerator.num_processes} processes do "
                f"not see {self.checkpoint}: all hosts need the same folder."
            )
        check_record(self.checkpoint, self.settings(), self.stage.fingerprint)
        if self.sharded:
            load_parts(self.checkpoint, self.states())
        else:
            accelerator.load_state(str(self.checkpoint))
        if self.ema:
            self.ema.to(accelerator.device)  # registered objects are loaded to the CPU
        accelerator.print(f"resumed at step {self.progress.step}", flush=True)

    def settings(self) -> dict[str, str]:
        """What must be the same when the training goes on."""
        numbers = sum(p.numel() for p in self.parameters)
        return {
            "optimizer": self.config.optimizer,
            "averaged weights": "kept" if self.config.average else "none",
            "place of the weights": "in parts on all processes" if self.sharded else "whole",
            **self.stage.settings,
            "set of trained weights": f"{numbers} numbers in {len(self.parameters)} tensors",
        }

    def states(self) -> dict[str, Any]:
        """What a checkpoint in parts holds."""
        named = {f"{i} {type(x).__name__}": x for i, x in enumerate(self.companions)}
        return {"trained": ShardedState(self.model, self.optimizer), **named}

    def train_steps(self) -> bool:
        """Steps, checkpoints and samples until the time is over; returns whether the run was
        asked to end before."""
        now = self.agree()
        while now.done < 1 and not now.over and not now.stop:
            if self.progress.step == self.config.profile_step:
                self.profile(now.done)
            self.train_step(now.done)
            now = self.agree()
            if now.save or now.sample:
                self.check_finite()
            if now.save and self.saves:
                self.save()
            if now.sample and self.saves:
                self.write_samples()
        return bool(now.stop)

    def agree(self) -> Agreement:
        """What comes next, the same in all processes, by the main one's clock."""
        now = Agreement(0, 0, 0, 0, self.termination.asked)
        if self.accelerator.is_main_process:
            step = self.progress.step
            due = self.due_checkpoint(step), self.due_sample(step)
            now = Agreement(self.fraction(), self.run_is_over(), *due, self.termination.asked)
        if self.accelerator.num_processes > 1:
            # Nought in the others, so the sum is what the main one says.
            values = torch.tensor(now, dtype=torch.float32, device=self.accelerator.device)
            now = Agreement(*reduce(values, reduction="sum").tolist())
        return now

    def fraction(self) -> float:
        """Part of the training that is done."""
        part = self.progress.seconds / (60 * self.config.minutes)
        if self.config.max_steps is not None:
            part = max(part, self.progress.step / self.config.max_steps)
        return part

    def run_is_over(self) -> bool:
        limit = self.config.run_minutes
        return limit is not None and self.progress.run_seconds > 60 * limit

    def learning_rate(self, done: float) -> float:
        """Warm-up, then constant, then a linear fall over the last part of the minutes."""
        config = self.config
        warm = min(1.0, (self.progress.step + 1) / config.warmup_steps)
        fall = min(1.0, (1 - done) / config.decay) if config.decay else 1.0
        return self.peak_rate * warm * max(fall, 0.01)

    def train_step(self, done: float) -> None:
        started, tokens = time.monotonic(), self.tokens
        rate = self.learning_rate(done)
        set_learning_rate(self.optimizer, rate)
        self.model.train()
        loss = self.gradients()
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        norm = norm.full_tensor() if self.sharded else norm
        self.figures = {"loss": loss, "gradient_norm": norm}
        if self.recorded is None:  # a recorded step is too short to wait for it
            self.check_finite()
        self.optimizer.step()
        if self.recorded is None:  # recorded steps write their gradients over
            self.speed.hold()
            self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.step(self.parameters)
        self.progress.step += 1
        self.means.add({"gradient_norm": norm})
        self.speed.step(self.tokens - tokens, time.monotonic() - started)
        if self.progress.step % self.config.log_steps == 0:
            self.check_finite()
            self.log(rate)

    def gradients(self) -> Tensor:
        """Mean loss of this process's batches; in the parameters are the gradients of all
        processes', exchanged after each batch where they lie in parts, to lie in parts again."""
        total = torch.zeros((), device=self.accelerator.device)
        for _ in range(self.config.accumulation):
            batch = self.batch()
            self.tokens += self.stage.tokens
            if self.recorded:
                losses = self.recorded(batch)
            else:
                with nullcontext() if self.sharded else self.accelerator.autocast():
                    losses = self.stage.loss(self.model, batch)
                (losses["loss"] / self.config.accumulation).backward()
            self.means.add(losses)
            total += losses["loss"].detach() / self.config.accumulation
        if self.accelerator.num_processes > 1 and not self.sharded:
            average([p.grad for p in self.parameters if p.grad is not None])
        return total

    def batch(self) -> Any:
        """The next batch of this process."""
        size, step = self.stage.samples_per_batch, self.progress.step
        if not size:
            return self.stage.batch(step)
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        first = self.progress.samples + rank * size
        # What else is random in a step follows from its samples too, not from earlier steps.
        torch.manual_seed((self.config.seed * 2**40 + first) % 2**63)
        self.progress.samples += processes * size
        return self.stage.samples(range(first, first + size))

    def check_finite(self) -> None:
        """Ends the training in all processes if the last step's loss or gradients are no numbers
        in one: before they are in the weights, unless the step is recorded."""
        figures = {name: float(value) for name, value in self.figures.items()}
        broken = not np.isfinite(list(figures.values())).all()
        if in_how_many(broken):
            raise FloatingPointError(
                f"Step {self.progress.step + 1}: {figures}. The last good state is "
                f"{self.checkpoint}, if one was saved; lower the learning rate to go on from it."
            )

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

    def log(self, rate: float) -> None:
        """Logs what there was since the last time."""
        means, speed = self.means.take(), self.speed.take()
        values = {**means, **speed, "learning_rate": rate}
        self.accelerator.log(values, step=self.progress.step)
        text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        if "tokens_per_second" in speed:
            text += "".join(f" {name} {value:.4g}" for name, value in speed.items())
        seconds = self.progress.seconds
        self.accelerator.print(
            f"{seconds:7.1f} s  step {self.progress.step:6d}  {text}  lr {rate:.1e}", flush=True
        )

    def save(self, export: bool = True) -> None:
        """Saves a checkpoint, and exports the averaged weights."""
        accelerator = self.accelerator
        wait = accelerator.wait_for_everyone if self.sharded else lambda: None
        times = {}
        began = time.monotonic()
        try:
            main = accelerator.is_main_process
            replace_folder(self.checkpoint, self.write_checkpoint, main, wait)
            times["checkpoint"] = time.monotonic() - began
            if export:
                replace_folder(self.exported, self.write_export, main, wait)
                times["export"] = time.monotonic() - began - times["checkpoint"]
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OSError(
                f"Step {self.progress.step} could not be saved: {first_line(error)}. What was "
                f"saved in {self.config.out} before stays, and the same command goes on from it "
                "once that is mended."
            ) from error
        text = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items())
        accelerator.print(f"saved at step {self.progress.step}: {text}", flush=True)

    def write_export(self, folder: Path) -> None:
        self.with_average(lambda: self.stage.export(folder))

    def write_checkpoint(self, folder: Path) -> None:
        if self.sharded:
            save_parts(folder, self.states())
        else:
            self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            write_record(folder, self.settings(), self.stage.fingerprint)

    def write_samples(self) -> None:
        """Writes a picture of what there is. A training does not end for want of one."""
        try:
            image = self.with_average(self.stage.sample_sheet)
        except Exception as error:  # of whatever the pipeline and the device may raise
            self.accelerator.print(f"No sample sheet: {type(error).__name__}: {error}", flush=True)
            return
        if self.accelerator.is_main_process:
            self.show(image)

    def show(self, image: Image.Image) -> None:
        """Saves a sample sheet, and shows it where losses are logged."""
        step = self.progress.step
        path = self.config.out / "samples" / f"{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                pixels = np.array(image.convert("RGB"))[None]
                tracker.log_images({"samples": pixels}, step=step, dataformats="NHWC")
            elif tracker.name == "trackio":
                import trackio

                tracker.log({"samples": trackio.Image(path)}, step=step)

    def with_average(self, action: Callable[[], Result]) -> Result:
        """Calls `action` while the stage's model holds the averaged weights."""
        self.exchange_average()
        self.stage.model.eval()
        try:
            # Eager: compiled for the training batch, blocks would be compiled anew for each sample.
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                return action()
        finally:
            self.exchange_average()
            self.stage.model.train()

    def exchange_average(self) -> None:
        """Exchanges the weights with their averages, one tensor after the other."""
        part_again(self.stage.model)
        if self.ema:
            for weight, averaged in zip(self.parameters, self.ema.shadow_params, strict=True):
                weight, averaged = local(weight), local(averaged)
                kept = weight.clone()
                weight.copy_(averaged)
                averaged.copy_(kept)

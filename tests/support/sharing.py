"""One of several processes that compute clips together; `test_context_parallel.py` starts them.

Writes to OUT/RANK.pt what this process found. What one process gives is found by the same
functions, with `processes=1`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from diffusers import (
    AutoencoderKLWan,
    ContextParallelConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from einops import rearrange
from peft import LoraConfig
from pipelines import latents_of, seed
from tiny import WORDS, inputs, randomise, tiny_ultragen
from torch import Tensor

from ultragen.model.context_parallel import among
from ultragen.model.fp8 import quantize
from ultragen.model.shared_layouts import Shares
from ultragen.model.token_shares import Area
from ultragen.model.transformer import UltraGenTransformer3DModel
from ultragen.model.window_plan import WindowRule, plan_layout
from ultragen.ops.exchange import Member, check_alike
from ultragen.pipeline import UltraGenPipeline
from ultragen.sampling.caches import cache_config
from ultragen.sampling.decoding import decode_pieces
from ultragen.training.build import TINY_SIZE, build_pipeline

HEADS = {"num_attention_heads": 4}  # three processes get 2, 1 and 1
RELEASED = {
    **HEADS,
    "num_layers": 3,
    "full_attention_layers": (0,),
    "uneven": "resize",
    "global_keys_from": "query",
    "timestep_dtype": "bfloat16",
}
MODELS: dict[str, dict[str, Any]] = {
    "paper": HEADS,
    "released": RELEASED,
    "shifted": {**HEADS, "crossing": "shift"},
    "global alone": {**HEADS, "branches": ("global",)},
    "T3": {**HEADS, "t3_windows": ((1, 2, 3), (2, 3, 1))},
    "T3 and full": {
        **HEADS,
        "num_layers": 3,
        "full_attention_layers": (1,),
        "t3_windows": ((1, 2, 2),),
    },
}
PART = (0.3, 0.9)
"""Noise levels of which both those above and those below belong to steps of four."""
INPUTS: list[dict[str, Any]] = [
    {"grid": (2, 12, 20), "windows": 4},
    {"grid": (3, 11, 17), "windows": 2, "batch": 2},
    {"grid": (1, 13, 22), "windows": 4, "moved": True},
    {"grid": (2, 23, 9), "windows": 2},  # cut into strips of rows
]


def parallel(model: UltraGenTransformer3DModel) -> UltraGenTransformer3DModel:
    """The model, shared out if there are several processes."""
    if dist.is_initialized():
        config = ContextParallelConfig(ulysses_degree=dist.get_world_size())
        model.enable_parallelism(config=config)
    return model


@torch.no_grad()
def outputs() -> dict[str, Tensor]:
    """Forward passes of all models for all inputs, and one by each process for itself."""
    found = {}
    own = None
    if dist.is_initialized():
        own, _ = dist.new_subgroups(1)
    for name, config in MODELS.items():
        model = parallel(tiny_ultragen(**config))
        with among(model, own) if own else nullcontext():
            found[f"{name}, alone"] = model(**inputs(INPUTS[0]["grid"])).sample
        for number, given in enumerate(INPUTS):
            if "t3_windows" in config:  # these have their own windows, and they stay
                given = {name: given[name] for name in given.keys() & {"grid", "batch"}}
            found[f"{name}, {number}"] = forward(model, **given)
    return found


def forward(model: UltraGenTransformer3DModel, grid: Any, batch: int = 1, **how: Any) -> Tensor:
    return model(**inputs(grid, batch), **how).sample


@torch.no_grad()
def windowed() -> dict[str, Tensor]:
    """Tokens that go into windows and come back as they are."""
    rule, found = WindowRule(), {}
    for number, given in enumerate(INPUTS):
        grid, count = given["grid"], given["windows"]
        tokens = torch.randn(1, *grid, 8, generator=seed(2))
        for odd in (False, True):
            name = f"windows, {number}, {'odd' if odd else 'even'}"
            found[name] = tokens
            if not dist.is_initialized():
                continue
            layout = plan_layout(grid, count, odd, rule, torch.zeros(1, 4), no_rotary)
            shares = Shares.of(Member.of(dist.group.WORLD), grid)
            rows, columns = shares.home.inside(Area(0, grid[1], 0, grid[2]))
            at = shares.windows(layout, 8, 4).local
            back = at.attend(tokens[:, :, rows, columns], lambda windows, where: windows)
            across = rearrange(back, "b t h w d -> b d t h w")
            found[name] = rearrange(shares.gather(across, (1, 1)), "b d t h w -> b t h w d")
    return found


def no_rotary(frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    table = torch.zeros(frames * height * width, 1)
    return table, table


@torch.no_grad()
def quantised() -> Tensor:
    """In FP8, whose scales are each token's own."""
    model = tiny_ultragen(**RELEASED, attention_head_dim=16)
    quantize(model)
    return forward(parallel(model), **INPUTS[0])


@torch.no_grad()
def adapted() -> Tensor:
    """With a LoRA, which comes after the model was shared out."""
    model = parallel(tiny_ultragen(**RELEASED))
    adapt(model)
    return forward(model, **INPUTS[0])


@torch.no_grad()
def adapt(model: UltraGenTransformer3DModel) -> None:
    layers = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj"]
    model.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
    for name, parameter in model.named_parameters():
        if ".default." in name:
            generator = torch.Generator().manual_seed(len(name))
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def pipeline() -> UltraGenPipeline:
    torch.manual_seed(0)
    pipe = build_pipeline(replace(TINY_SIZE, heads=4), WORDS)
    randomise(pipe.transformer, strength=0.3)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def end_guidance(pipe: Any, step: int, timestep: Tensor, tensors: dict) -> dict:
    if step == 2:
        pipe._guidance_scale = 1.0
    return {}


def clips() -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Whole runs: from the first process's noise, with caches, and stopped by one process; and how
    many processes shared out each pass that this one took part in."""
    pipe = pipeline()
    shared: dict[str, list[int]] = {}

    def note(transformer: UltraGenTransformer3DModel, *given: Any) -> None:
        group = transformer.parallel_group
        shared[name].append(dist.get_world_size(group) if group else 1)

    several = dist.is_initialized()
    rank = dist.get_rank() if several else 0
    if several:
        pipe.enable_context_parallel()
    pipe.transformer.register_forward_pre_hook(note)
    runs: dict[str, dict[str, Any]] = {
        "guided": {"generator": seed(rank)},
        "unguided": {"guidance_scale": 1.0},
        "interval": {"guidance_interval": PART, "num_inference_steps": 4},
        # Work for three processes, or for six in halves.
        "narrow": {"guidance_interval": PART, "num_inference_steps": 4, "width": 384},
    }
    caches: dict[str, Any] = {
        "TaylorSeer": TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=1, taylor_factors_dtype=torch.float32
        ),
        "taylor-2": cache_config("taylor-2"),
        "pyramid": PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 2000),
            current_timestep_callback=lambda: pipe.current_timestep,
        ),
    }
    last = dist.get_world_size() - 1 if several else 0

    def stop(pipe: Any, step: int, timestep: Tensor, tensors: dict) -> dict:
        pipe.interrupt = rank == last and step == 0
        return {}

    for cache in caches:
        runs[cache] = {"num_inference_steps": 4}
    # Known before the run that some steps are not guided, and found out within it.
    runs["taylor-2, interval"] = {"num_inference_steps": 8, "guidance_interval": PART}
    runs["taylor-2, ended"] = {"num_inference_steps": 8, "callback_on_step_end": end_guidance}
    runs["stopped"] = {"callback_on_step_end": stop}
    runs["LoRA"] = {"num_inference_steps": 4, "guidance_interval": PART}
    found = {}
    for name, how in runs.items():
        shared[name] = []
        cache = caches.get(name.split(",")[0])
        if cache is not None:
            pipe.transformer.enable_cache(cache)
        if name == "LoRA":  # the last one
            adapt(pipe.transformer)
        found[name] = latents_of(pipe, **{"height": 288, "width": 512, **how})
        if cache is not None:
            pipe.transformer.disable_cache()
    return found, shared


@torch.no_grad()
def decoded() -> Tensor:
    """Wan's autoencoder, each process some rows."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    vae = vae.eval().double()
    latents = torch.randn(1, 4, 3, 11, 6, generator=seed(1), dtype=torch.float64)
    group = dist.group.WORLD if dist.is_initialized() else None
    return torch.cat(list(decode_pieces(vae, latents, group)), dim=2)


def refusals() -> dict[str, str]:
    """What can't be done, and what is said of it."""
    count = dist.get_world_size()
    config = ContextParallelConfig(ulysses_degree=count)

    def cached() -> None:
        parallel(tiny_ultragen(**HEADS)).enable_cache(FirstBlockCacheConfig(threshold=0.1))

    def cached_before() -> None:
        model = tiny_ultragen(**HEADS)
        model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        parallel(model)

    def cached_by_spectrum() -> None:
        parallel(tiny_ultragen(**HEADS)).enable_cache(SeaCacheConfig())

    def twice() -> None:
        parallel(parallel(tiny_ultragen(**HEADS)))

    def small() -> None:
        with torch.no_grad():
            parallel(tiny_ultragen(**HEADS))(**inputs((1, 4, 4)), windows=2)

    def small_guided() -> None:
        pipe = pipeline()
        pipe.enable_context_parallel()
        latents_of(pipe, height=128, width=128)

    def guided_elsewhere() -> None:
        pipe = pipeline()
        pipe.enable_context_parallel()
        pipe.enable_parallel_guidance("cpu")

    def parallel_after_guidance() -> None:
        pipe = pipeline()
        pipe.enable_parallel_guidance("cpu")
        pipe.enable_context_parallel()

    def other_torch() -> None:
        with mock.patch.object(torch, "__version__", f"2.{dist.get_rank()}"):
            parallel(tiny_ultragen(**HEADS))

    def other_gpu() -> None:
        name = "A100" if dist.get_rank() else "H100"
        with mock.patch.object(torch.cuda, "get_device_name", lambda device: name):
            check_alike(torch.device("cuda"))

    calls: dict[str, Callable[[], Any]] = {
        "cache": cached,
        "cache before": cached_before,
        "cache by spectrum": cached_by_spectrum,
        "twice": twice,
        "grid": small,
        "guided grid": small_guided,
        "heads": lambda: parallel(tiny_ultragen(num_attention_heads=1)),
        "gradients": lambda: parallel(tiny_ultragen(**HEADS))(**inputs((1, 12, 16)), windows=2),
        "degree": lambda: tiny_ultragen(**HEADS).enable_parallelism(
            config=ContextParallelConfig(ulysses_degree=count + 1)
        ),
        "plan": lambda: tiny_ultragen(**HEADS).enable_parallelism(config=config, cp_plan={}),
        "guidance": guided_elsewhere,
        "after guidance": parallel_after_guidance,
        "base": lambda: pipeline().base_pipeline().enable_context_parallel(),
        "torch": other_torch,
        "GPU": other_gpu,
    }
    return {name: said(call) for name, call in calls.items()}


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


@contextmanager
def of_a_dying_process(out: Path, how: str) -> Iterator[None]:
    """The last process's memory runs out in the first step, or it is killed; OUT/died says when."""
    failing = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)

    def velocity(*arguments: Any, **options: Any) -> Tensor:
        (out / "died").write_text(str(time.time()))
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with mock.patch.object(UltraGenPipeline, "velocity", velocity) if failing else mock.MagicMock():
        yield


def command(out: Path, *words: object) -> int:
    """The command line, with a pipeline that lies in OUT/model."""
    from commands import PROMPT, SMALL, ultragen

    run = ("generate", "--prompt", PROMPT, *SMALL, "--model", out / "model")
    return ultragen(*run, "--out", out / f"{os.environ.get('WORLD_SIZE', 1)}.mp4", *words)


def everything() -> dict[str, Any]:
    """What all processes find."""
    once = {"adapted": adapted(), "quantised": quantised(), "decoded": decoded()}
    runs, shared = clips()
    return {**outputs(), **windowed(), **once, **runs, "shared": shared}


def main() -> int:
    out, what = Path(sys.argv[1]), sys.argv[2]
    if what in ("dying", "killed"):
        with of_a_dying_process(out, what):
            return command(out, *sys.argv[3:])
    if what == "command":
        return command(out)
    dist.init_process_group("gloo")
    found = everything() | {"refusals": refusals()}
    torch.save(found, out / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())

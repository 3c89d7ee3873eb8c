"""The UltraGen transformer: Wan's, with its self-attention replaced (paper §4)."""

from __future__ import annotations

from contextlib import nullcontext
from functools import wraps
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from diffusers import PyramidAttentionBroadcastConfig, WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput

# diffusers' `from_pretrained` looks for this name beside a component's class to find out how the
# component is loaded.
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import apply_lora_scale
from einops import rearrange
from torch import Tensor, nn

from ..ops.dispatch import prepare
from ..ops.gradients import call_layer
from ..ops.modulation import modulated_norm
from ..ops.strided_windows import Counts
from .adapters import (
    check_no_adapter_is_lost,
    check_unadapted,
    keeps_adapter_strengths,
    others_stay,
    swapped,
)
from .attention import UltraGenAttention
from .block import PatchEmbedding, UltraGenBlock, cache_config
from .broadcast_by_pass import tell_passes_apart
from .context_parallel import check_cache, join, share_out
from .dora import weigh_whole_doras
from .strict_loading import StrictLoading
from .t3_attention import T3Attention, T3Layout, plan_t3
from .window_plan import AttentionLayout, Crossing, Rotary, UnevenWindows, WindowRule, plan_layout
from .windows import auto_windows, check_counts

LayerKind = Literal["full", "even", "odd"] | Counts
"""Wan's layers; UltraGen's, by their parity; T3-Video's, by their numbers of windows."""
TimestepDtype = Literal["float32", "bfloat16"]


class RoundedTimesteps(nn.Module):
    """Sinusoidal embedding of timesteps that are rounded to bfloat16 first.

    A quirk of the released weights: the authors ran everything in bfloat16, which has every fourth
    whole number above 512, and their time embedding and gates never saw the times in between. As
    in Wan, cosines come first, then sines, in float64.

    Args:
        dim: Width of the embedding.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, timestep: Tensor) -> Tensor:
        """b in 0..1000 → b dim."""
        half = self.dim // 2
        steps = torch.arange(half, dtype=torch.float64, device=timestep.device)
        time = timestep.to(torch.bfloat16).double()
        angles = torch.outer(time, 10000.0 ** -(steps / half))
        return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


class UltraGenTransformer3DModel(StrictLoading, WanTransformer3DModel):
    """A Wan transformer whose self-attention has a local, a hierarchical and a global branch.

    Everything else is Wan's, with Wan's names, so that what diffusers offers for Wan (attention
    backends, caches, LoRA loading, gradient checkpointing, saving and loading) works here too.

    Args:
        patch_size: Latent frames, rows and columns that make a token.
        num_attention_heads: Attention heads.
        attention_head_dim: Features of a head.
        in_channels: Latent channels in.
        out_channels: Latent channels out.
        text_dim: Features of a text token.
        freq_dim: Width of the sinusoidal timestep embedding.
        ffn_dim: Hidden width of the feed-forward network.
        num_layers: Transformer blocks.
        cross_attn_norm: Wan's norm before cross-attention.
        qk_norm: Kind of query and key norm; only Wan's is known.
        eps: Added to the variance, or mean square, in all norms.
        rope_max_seq_len: Most positions on one axis.
        full_attention_layers: Layers that keep Wan's full attention with absolute positions.
        branches: Compressed branches beside the local one: `hierarchical`, `global`.
        crossing: How the windows of odd layers differ, see `WindowRule`.
        uneven: What happens to axes that the windows do not divide, see `WindowRule`.
        lora_rank: Rank of the compressed branches' updates; 0 leaves them out.
        gate_dim: Hidden width of the time gates; None takes the model's width.
        gate_init: Weight of the finer branches in each fusion before training.
        global_keys_from: Projection that makes the global branch's keys: `key` or `query`.
        window_size: Token rows and columns of a window in training, which `windows="auto"` keeps.
        timestep_dtype: Precision to which timesteps are rounded before they are embedded.
        t3_windows: Numbers of windows in time, of rows and of columns that layers have in turn,
            which then attend as T3-Video's do, see `T3Attention`; empty for UltraGen's. Axes that
            a number does not divide take the nearest that does.
        distilled_steps: Steps that the weights were distilled to, which take no guidance; None
            where they were not. It and the next tell what suits the weights, and change no output.
        distilled_shift: Shift of these steps' noise levels.

    Attributes:
        parallel_group: The processes that compute each clip together; None for this one alone.
    """

    parallel_group: dist.ProcessGroup | None = None

    _no_split_modules = [UltraGenBlock.__name__]  # noqa: RUF012
    _repeated_blocks = [UltraGenBlock.__name__]  # noqa: RUF012
    # Of a gate's small layers a change of precision saves nothing.
    _skip_layerwise_casting_patterns = (
        *WanTransformer3DModel._skip_layerwise_casting_patterns,
        "gate",
    )

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 12,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 8960,
        num_layers: int = 30,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        rope_max_seq_len: int = 1024,
        full_attention_layers: tuple[int, ...] = (),
        branches: tuple[str, ...] = ("hierarchical", "global"),
        crossing: Crossing = "grow",
        uneven: UnevenWindows = "split",
        lora_rank: int = 64,
        gate_dim: int | None = None,
        gate_init: float = 0.75,
        global_keys_from: Literal["key", "query"] = "key",
        window_size: tuple[float, float] = (17.0, 30.0),
        timestep_dtype: TimestepDtype = "float32",
        t3_windows: tuple[tuple[int, int, int], ...] = (),
        distilled_steps: int | None = None,
        distilled_shift: float | None = None,
    ) -> None:
        # The undecorated constructor: the decorated one would put Wan's image settings, which this
        # class does not take, into the saved configuration.
        WanTransformer3DModel.__init__.__wrapped__(
            self,
            patch_size=patch_size,
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            rope_max_seq_len=rope_max_seq_len,
        )
        if unknown := [i for i in full_attention_layers if not 0 <= i < num_layers]:
            raise ValueError(f"full_attention_layers {unknown} are not among {num_layers} layers.")
        if timestep_dtype not in get_args(TimestepDtype):
            raise ValueError(f"timestep_dtype must be float32 or bfloat16, not {timestep_dtype!r}.")
        if timestep_dtype == "bfloat16":
            self.condition_embedder.timesteps_proj = RoundedTimesteps(freq_dim)
        self.rule = WindowRule(crossing, uneven)
        in_turn: list[LayerKind] = [check_counts(counts) for counts in t3_windows]
        in_turn = in_turn or ["even", "odd"]
        self.layer_kinds: list[LayerKind] = [
            "full" if i in full_attention_layers else in_turn[i % len(in_turn)]
            for i in range(num_layers)
        ]
        dim = num_attention_heads * attention_head_dim
        PatchEmbedding.take_over(self.patch_embedding)
        for block, kind in zip(self.blocks, self.layer_kinds, strict=True):
            UltraGenBlock.take_over(block)
            if isinstance(kind, tuple):
                T3Attention.take_over(block.attn1)
            elif kind != "full":
                block.attn1 = UltraGenAttention(
                    dim,
                    num_attention_heads,
                    eps,
                    tuple(branches),
                    lora_rank,
                    gate_dim or dim,
                    gate_init,
                    freq_dim,
                    global_keys_from,
                )

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs: Any) -> Any:
        # A setting of earlier versions, which no weights were ever trained with.
        if config_dict.get("resize_antialias"):
            raise ValueError("resize_antialias is no longer a setting: leave it out.")
        known = {key: value for key, value in config_dict.items() if key != "resize_antialias"}
        return super().extract_init_dict(known, **kwargs)

    @classmethod
    def from_wan(cls, wan: WanTransformer3DModel, **config: Any) -> UltraGenTransformer3DModel:
        """Converts a dense Wan transformer.

        The new parts start neutral: low-rank updates at zero, compression as average pooling,
        decompression as bilinear interpolation, gates constant. Where a window covers the whole
        grid, the local branch alone would give the dense model's output; the gates start at
        `gate_init`, so that the coarse branches, which see the whole frame, weigh in from the
        first step.

        Args:
            wan: The dense model, text-to-video only.
            config: UltraGen's own settings, such as `lora_rank` or `full_attention_layers`.

        Raises:
            ValueError: if the dense model is conditioned on images.
        """
        if wan.config.image_dim is not None or wan.config.added_kv_proj_dim is not None:
            raise ValueError("Image-conditioned Wan models can't be converted: text-to-video only.")
        foreign = {"image_dim", "added_kv_proj_dim", "pos_embed_seq_len"}
        shared = {
            key: value
            for key, value in wan.config.items()
            if not key.startswith("_") and key not in foreign
        }
        with torch.device(wan.device):
            model = cls(**{**shared, **config})
        if model.dtype != wan.dtype:
            model = model.to(wan.dtype)
        missing, unexpected = model.load_state_dict(wan.state_dict(), strict=False)
        wrong = [key for key in missing if ".attn1.branches." not in key] + list(unexpected)
        if wrong:
            raise ValueError(f"The dense model's weights don't fit: {wrong}.")
        return model

    @classmethod
    def from_single_file(cls, *arguments: Any, **options: Any) -> Any:
        """Refused: diffusers' loader of single files knows Wan's parts alone, and would leave
        UltraGen's as they are made.

        Raises:
            ValueError: always, with what loads such a file.
        """
        raise ValueError(
            "from_single_file would leave UltraGen's branches untrained: load the authors' file "
            "with UltraGenPipeline.from_wan(ultragen=FILE) or ultragen.weights.released."
            "load_released(FILE), or turn it into a folder with `python -m ultragen convert`."
        )

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        prefix: str | None = "transformer",
        hotswap: bool = False,
        **options: Any,
    ) -> None:
        """Loads an adapter in diffusers' naming, see `PeftAdapterMixin`; the pipeline's
        `load_lora_weights` reads others too."""
        source, name = pretrained_model_name_or_path_or_dict, options.get("adapter_name")
        with swapped(self, name) if hotswap and name else nullcontext():
            super().load_lora_adapter(source, prefix, hotswap, **options)
        weigh_whole_doras(self)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Takes these adapters off, as in diffusers; which others act stays as it is."""
        with others_stay(self, adapter_names):
            super().delete_adapters(adapter_names)

    # A pipeline tells a part of shards and variants if its signature says that it knows them.
    @wraps(ModelMixin.save_pretrained, assigned=())
    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """Saves as diffusers does.

        Raises:
            ValueError: if LoRA adapters are loaded, or merged and not taken off.
        """
        check_unadapted(self, "The transformer")
        super().save_pretrained(save_directory, *arguments, **options)

    def fuse_qkv_projections(self) -> None:
        """Computes what reads the same features as one matrix product, where the attention is
        Wan's, see diffusers' `AttentionMixin`.

        Raises:
            ValueError: if LoRA adapters are loaded.
        """
        check_no_adapter_is_lost(self)
        super().fuse_qkv_projections()

    def enable_parallelism(self, *, config: Any, cp_plan: None = None) -> None:
        """Computes each clip together with the transformers of other processes, see
        `context_parallel`.

        Args:
            config: diffusers' `ContextParallelConfig`, with as many processes as there are.
            cp_plan: None: a plan of diffusers cuts tokens that windows need together.

        Raises:
            ValueError: if this transformer or these processes can't, with what can.
        """
        if self.parallel_group is not None or cp_plan is not None:
            raise ValueError("enable_parallelism is called once, and makes its own plan.")
        join(self, config)

    def enable_cache(self, config: Any) -> None:
        """Reuses what changes little from step to step, see diffusers' `CacheMixin`."""
        if self.parallel_group is not None:
            check_cache(config)
        UltraGenBlock.register()
        super().enable_cache(cache_config(config))
        if isinstance(config, PyramidAttentionBroadcastConfig):
            tell_passes_apart(self)

    def token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Tokens on each axis of latents of frames × height × width.

        Raises:
            ValueError: if the patches don't divide an axis.
        """
        p_t, p_h, p_w = self.config.patch_size
        if frames % p_t or height % p_h or width % p_w:
            raise ValueError(
                f"Latents of {frames} × {height} × {width} can't be cut into patches of {p_t} × "
                f"{p_h} × {p_w}: choose frames, rows and columns that are multiples of these."
            )
        return frames // p_t, height // p_h, width // p_w

    def resolve_windows(
        self, windows: int | Literal["auto"], height: int, width: int
    ) -> int | None:
        """K for a grid of height × width tokens; `auto` keeps the trained window size (§4.1). None
        where layers have windows of their own, see `t3_windows`.

        Raises:
            ValueError: if those are to have others.
        """
        if self.config.t3_windows:
            if windows != "auto":
                raise ValueError(
                    f"windows must be 'auto', not {windows!r}: T3-Video's layers have windows of "
                    "their own."
                )
            return None
        if windows == "auto":
            return auto_windows(height, width, tuple(self.config.window_size))
        return windows

    def _rotary(self, frames: int, height: int, width: int) -> Rotary:
        """cos and sin of a window of tokens, (t h w) × half the head size."""
        p_t, p_h, p_w = self.config.patch_size
        shape = (1, 1, frames * p_t, height * p_h, width * p_w)
        # Nothing but the shape is read. It lies nowhere in memory, and may yet be moved, as
        # offloading does with all that a part is given.
        cos, sin = self.rope(self.rope.freqs_cos.new_empty(1).expand(shape))
        return cos[0, :, 0, ::2].contiguous(), sin[0, :, 0, ::2].contiguous()

    def _layouts(
        self, latents: Tensor, timestep: Tensor, windows: int | Literal["auto"], moved: bool
    ) -> dict[LayerKind, AttentionLayout | T3Layout | tuple[Tensor, Tensor]]:
        """What the self-attention of each kind of layer needs to know of the input."""
        grid = self.token_grid(*latents.shape[2:])
        count = self.resolve_windows(windows, *grid[1:])
        layouts: dict[Any, Any] = {}
        if count is None:
            if moved:
                raise ValueError("T3-Video's windows can't be moved: window_motion must be none.")
            kinds = {kind for kind in self.layer_kinds if isinstance(kind, tuple)}
            layouts.update(plan_t3(grid, kinds, self._rotary(*grid)))
        else:
            sinusoid = self.condition_embedder.timesteps_proj(timestep)
            layouts |= {
                kind: plan_layout(
                    grid, count, kind == "odd", self.rule, sinusoid, self._rotary, moved
                )
                for kind in ("even", "odd")
                if kind in self.layer_kinds
            }
        if "full" in self.layer_kinds:
            shared = self.parallel_group is not None
            layouts["full"] = self._rotary(*grid) if shared else self.rope(latents)
        return layouts

    @keeps_adapter_strengths
    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        windows: int | Literal["auto"] = "auto",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        moved: bool = False,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predicts the flow-matching velocity, or what the pipeline's `prediction` says.

        Args:
            hidden_states: Noisy latents, b c t h w; h and w multiples of the patch size.
            timestep: Diffusion time in 0..1000, b.
            encoder_hidden_states: Text embeddings, b n d.
            windows: K, the windows on each axis in the local branch of even layers, an even
                number; `auto` keeps the window size that the model was trained with.
            return_dict: Whether to return an output object instead of a tuple.
            attention_kwargs: `scale` weighs LoRA adapters that were loaded.
            moved: Whether windows stand between their usual places, see `WindowRule.partition`.

        Returns:
            The prediction, b c t h w.

        Raises:
            ValueError: if the windows don't fit the grid.
        """
        prepare(hidden_states.device)
        layouts = self._layouts(hidden_states, timestep, windows, moved)
        grid, shares = self.token_grid(*hidden_states.shape[2:]), None
        if self.parallel_group is not None:
            shares, layouts = share_out(self, layouts, grid)
            hidden_states = shares.latents(hidden_states, self.config.patch_size[1:])
            grid = self.token_grid(*hidden_states.shape[2:])

        tokens = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        temb, timestep_proj, text, _ = self.condition_embedder(timestep, encoder_hidden_states)
        timestep_proj = timestep_proj.unflatten(1, (6, -1))

        for block, kind in zip(self.blocks, self.layer_kinds, strict=True):
            tokens = call_layer(self, block, tokens, text, timestep_proj, layouts[kind])  # b n d

        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        tokens = modulated_norm(self.norm_out, tokens, scale, shift)
        sample = self._unpatchify(self.proj_out(tokens), grid)
        if shares is not None:
            sample = shares.gather(sample, self.config.patch_size[1:])
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _unpatchify(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Inverse of the patch embedding's cut: b n (patch c) → b c t h w."""
        (t, h, w), (pt, ph, pw) = grid, self.config.patch_size
        return rearrange(
            tokens,
            "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)",
            t=t, h=h, w=w, pt=pt, ph=ph, pw=pw,
        )  # fmt: skip

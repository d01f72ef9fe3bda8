"""Omni: encoders, two towers that meet in the cache, heads.

    text ids ──> embed ─────────┐
    pixels ──> vision ──> shuffle ──> projector ──┴──> context tower ──> head ──> next-token logits
                                                          │ cache           └──> mtp ──> logits further ahead
                                                          ▼
    noisy latents ──> latents.read ───────────────> denoiser tower ──> latents.write ──> velocity

The context is read once; every denoising step, guidance branch and further turn reads its cache.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from omni.cache import Cache
from omni.config import OmniConfig
from omni.decoders.heads import LatentHead, grid_positions
from omni.encoders.projector import Projector
from omni.encoders.reduction import pixel_shuffle
from omni.encoders.vision import VisionEncoder
from omni.inputs import Inputs, image_positions, image_runs, pad_rows
from omni.kernels.linear import project
from omni.layers import wide
from omni.mtp import MTP
from omni.tokenizers.latent import PatchCodec
from omni.tower import Tower


class Omni(nn.Module):
    """A system of the family: what its config leaves out is absent (None)."""

    def __init__(self, config: OmniConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Any = None  # set by whoever loads the model
        d = config.context.d_model
        self.embed = nn.Embedding(config.vocab_size, d)
        self.context = Tower(config.context)
        self.head = None if config.tie_embeddings else nn.Linear(d, config.vocab_size, bias=False)
        self.mtp = MTP(config.mtp, config.context) if config.mtp else None
        self.vision, self.projector = self._build_vision(config)
        self.denoiser = Tower(config.denoiser) if config.denoiser else None
        self.latents = LatentHead(config.denoiser.d_model, config.latent) if config.latent else None
        self.codec = PatchCodec(config.latent.codec) if config.latent and config.latent.codec else None
        if not self.embed.weight.is_meta:
            nn.init.normal_(self.embed.weight, std=0.02)

    @staticmethod
    def _build_vision(config: OmniConfig) -> tuple[VisionEncoder | None, Projector | None]:
        v = config.vision
        if v is None:
            return None, None
        width = v.shuffle**2 * v.d_model
        return VisionEncoder(v), Projector(width, v.d_projector or 4 * width, config.context.d_model)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    # -- understanding -------------------------------------------------------------------------------------------------

    def new_cache(self, batch: int, capacity: int = 0) -> Cache:
        """An empty cache of the context tower with room for ``capacity`` tokens a row."""
        return self.context.new_cache(batch, capacity)

    def logits(self, inputs: Tensor | Inputs, cache: Cache | None = None, last_only: bool = False) -> Tensor:
        """Next-token logits, float32: (b, n, v), or (b, 1, v) of each row's last real token.

        With a cache the call continues it: prefill, chunks of a prefill and single steps are the same call.
        """
        inputs = self._as_inputs(inputs)
        hidden = self.read(inputs, cache)
        if last_only:
            hidden = _last(hidden, inputs.mask)
        return self.predict(hidden)

    def read(self, inputs: Tensor | Inputs, cache: Cache | None = None, seen: Sequence[Tensor] | None = None) -> Tensor:
        """Hidden states (b, n, d) of the context tower, after its final norm.

        ``seen`` may hold the images' tokens where :meth:`see` was called already, in the order of ``inputs.pixels``.
        """
        inputs = self._as_inputs(inputs)
        self._check_ids(inputs.input_ids)
        places = self._find_images(inputs) if inputs.pixels else None
        x = self.embed(inputs.input_ids)
        positions = None
        if places is not None:
            seen = self._see_all(inputs.pixels) if seen is None else seen
            x = _place_images(x, places, seen)
            positions = self._positions_of(places, inputs.mask, cache)
        return self.context(x, cache=cache, mask=inputs.mask, segments=inputs.segments, positions=positions)

    def predict(self, hidden: Tensor) -> Tensor:
        """Hidden (..., d) -> logits (..., v) in float32 (float64 where the weights are)."""
        logits = project(hidden, self.head.weight if self.head is not None else self.embed.weight)
        return logits.to(wide(logits.dtype))

    def see(self, pixels: Tensor) -> Tensor:
        """Images of one size (b, 3, H, W) in [0, 1] -> tokens of the language model (b, h w / shuffle^2, d)."""
        if self.vision is None:
            raise ValueError("this model has no vision encoder")
        return self.project(self.vision(pixels), pixels.shape[-2:])

    def project(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Patch features (b, h w, d_vision) of images of ``size`` pixels -> tokens (b, h w / shuffle^2, d)."""
        grid = self.vision.grid(size)
        return self.projector(pixel_shuffle(features, grid, self.config.vision.shuffle))

    def image_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens that an image of ``size`` (height, width) takes, before anything is encoded."""
        if self.config.vision is None:
            raise ValueError("this model has no vision encoder")
        side = self.config.vision.token_pixels
        height, width = size
        if height % side or width % side or not height or not width:
            raise ValueError(f"an image of {height}x{width} pixels does not divide into tokens of {side}x{side}")
        return height // side, width // side

    def _find_images(self, inputs: Inputs) -> "_Places":
        """Where the images of ``inputs`` go. Placeholders and images must agree; nothing is encoded before they do."""
        if inputs.segments is not None:
            raise ValueError("packed sequences with images are not supported: give each its own row")
        grids = [self.image_grid(p.shape[-2:]) for p in inputs.pixels]
        if "image" not in self.config.special_tokens:
            raise ValueError("this model's special_tokens name no image placeholder")
        flags = inputs.input_ids == self.config.special_tokens["image"]
        return _Places(flags, grids, image_runs(flags, [h * w for h, w in grids]))

    def _positions_of(self, places: "_Places", mask: Tensor | None, cache: Cache | None) -> Tensor | None:
        """(3, b, n) positions that follow from the images' grids; None where the tower has no rotary positions."""
        if self.context.rotary is None:
            return None
        flags, grids, pieces = places
        first = cache.next_positions() if cache is not None else torch.zeros(len(flags), dtype=torch.int64)
        return image_positions(flags, mask, pieces, grids, first)

    def _see_all(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Tokens of every image; images of one size go through the encoder together."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(pixels):
            by_size.setdefault(tuple(image.shape), []).append(i)
        tokens: list[Tensor] = list(pixels)
        for members in by_size.values():
            seen = self.see(torch.stack([pixels[i] for i in members]).to(self.device))
            for i, one in zip(members, seen, strict=True):
                tokens[i] = one
        return tokens

    # -- generation ----------------------------------------------------------------------------------------------------

    def velocity(self, latents: Tensor, t: Tensor, context: Cache) -> Tensor:
        """Direction (b, c, H, W) of noisy latents (b, c, H, W) at time t (b,), given the prompt's cache."""
        hidden = self.denoise(latents, t, context)
        return self.latents.write(hidden, latents.to(self.dtype), t)

    def denoise(self, latents: Tensor, t: Tensor, context: Cache) -> Tensor:
        """Hidden states (b, n, d) of the denoiser tower, after its final norm: what :meth:`velocity` is read from."""
        if self.latents is None:
            raise ValueError("this model has no denoiser for image latents")
        latents = latents.to(self.dtype)
        offset = self.config.latent.position_offset
        positions = grid_positions(self.latents.grid(latents), context.next_positions() + offset)
        return self.denoiser(self.latents.read(latents), context=context, positions=positions, causal=False, time=t)

    # -- inputs --------------------------------------------------------------------------------------------------------

    def prepare(self, messages: list, **template: Any) -> Inputs:
        """OpenAI-style messages (or a list of conversations) -> inputs, rows padded on the left.

        ``template`` goes to the chat template (thinking, tools, ...). Images become ``Inputs.pixels``.
        """
        if self.tokenizer is None:
            raise ValueError("this model was loaded without a tokenizer; give it token ids")
        conversations = messages if messages and isinstance(messages[0], list) else [messages]
        rows, pixels = [], []
        for conversation in conversations:
            ids, images = self._prepare_one(conversation, template)
            rows.append(ids)
            pixels.extend(images)
        input_ids, mask = pad_rows(rows, self.tokenizer.special.get("pad", 0), left=True)
        inputs = Inputs(input_ids, mask, tuple(pixels))
        return inputs.to(self.device)

    def _prepare_one(self, conversation: list[dict], template: dict) -> tuple[list[int], list[Tensor]]:
        from omni.tokenizers.image import fit, open_image

        ids = self.tokenizer.encode_chat(conversation, **template)
        sources = [part for message in conversation for part in _images(message)]
        if not sources:
            return ids, []
        if self.vision is None:
            raise ValueError("this model reads no images")
        side = self.config.vision.token_pixels
        longest = self.config.vision.max_grid * self.config.vision.patch_size
        images = [fit(open_image(source), multiple=side, max_side=longest) for source in sources]
        sizes = iter([h * w for h, w in (self.image_grid(i.shape[-2:]) for i in images)])
        placeholder = self.config.special_tokens["image"]
        expanded: list[int] = []
        for token in ids:
            expanded.extend([token] * next(sizes) if token == placeholder else [token])
        return expanded, images

    def _as_inputs(self, inputs: Tensor | Inputs) -> Inputs:
        return inputs if isinstance(inputs, Inputs) else Inputs(inputs)

    def _check_ids(self, ids: Tensor) -> None:
        if ids.dim() != 2 or ids.dtype != torch.int64:
            raise ValueError(f"token ids must be (batch, tokens) int64, not {tuple(ids.shape)} {ids.dtype}")
        if ids.numel() == 0:
            raise ValueError("there are no tokens to read")
        low, high = torch.stack(torch.aminmax(ids)).tolist()  # one wait for the device, not two
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"token ids run from {low} to {high}; the vocabulary has {self.config.vocab_size}")


class _Places(NamedTuple):
    """Where a call's images go."""

    flags: Tensor  # (b, n) True at placeholders
    grids: list[tuple[int, int]]  # rows and columns of each image's tokens
    pieces: list[tuple[int, int, int]]  # row, start and stop of each image


def _place_images(x: Tensor, places: _Places, seen: Sequence[Tensor]) -> Tensor:
    """Embeddings (b, n, d) with the images' tokens in place of their placeholders."""
    wanted, given = [h * w for h, w in places.grids], [len(tokens) for tokens in seen]
    if wanted != given:
        raise ValueError(f"the images take {wanted} tokens; those given have {given}")
    # The runs stand in the images' order, so the tokens can be poured in one after the other.
    return x.masked_scatter(places.flags[..., None], torch.cat(list(seen)).to(x.dtype))


def _images(message: dict) -> list:
    """The image sources of one message's parts, in order."""
    content = message.get("content")
    if not isinstance(content, list):
        return []
    found = []
    for part in content:
        if part.get("type") == "image":
            found.append(part["image"])
        elif part.get("type") == "image_url":
            found.append(part["image_url"]["url"])
    return found


def _last(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """(b, n, d) -> (b, 1, d): each row's last real token."""
    if mask is None:
        return hidden[:, -1:]
    index = mask.shape[1] - 1 - mask.flip(1).to(torch.int64).argmax(dim=1)
    return hidden.gather(1, index[:, None, None].expand(-1, 1, hidden.shape[2]))

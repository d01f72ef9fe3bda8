"""Omni: encoders, two towers that meet in the cache, heads.

    text ids ──> embed ──────────────────────────────┐
    images, videos ──> vision ──> shuffle, project ──┤
    sounds ──> sound ──> project ────────────────────┴──> context tower ──> head ──> next-token logits
                                                          │ cache           └──> mtp ──> logits further ahead
                                                          ▼
    noisy latents ──> latents.read ───────────────> denoiser tower ──> latents.write ──> velocity
    masked tokens ──> tokens.read ────────────────>       "        ──> tokens.write ───> logits of what is masked

The context is read once; every denoising step, guidance branch and further turn reads its cache.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omni.cache import EXACT, Cache, CacheFormat
from omni.config import OmniConfig, SoundConfig
from omni.decoders.flow import State
from omni.decoders.heads import ActionHead, LatentHead, SoundHead, TokenHead
from omni.encoders.audio import AudioEncoder
from omni.encoders.clip import build_vision
from omni.encoders.projector import Connector, Projector
from omni.encoders.reduction import retention_mask
from omni.encoders.vision import Features
from omni.inputs import Inputs, Piece, media_positions, media_runs, pieces_of
from omni.kernels.linear import project
from omni.layers import Linear, wide
from omni.mtp import MTP
from omni.streams import Heads, Scene
from omni.tokenizers.latent import PatchCodec
from omni.tokenizers.mel_codec import MelCodec
from omni.tower import Tower

CLIPS_AT_ONCE = 8  # clips of sound that are encoded together


class Omni(nn.Module):
    """A system of the family: what its config leaves out is absent (None)."""

    def __init__(self, config: OmniConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Any = None  # set by whoever loads the model, as is the folder it came from
        self.folder: Path | None = None
        self.cache_format = EXACT  # of new caches; a quantised checkpoint may ask for another
        d = config.context.d_model
        self.embed = nn.Embedding(config.vocab_size, d)
        self.context = Tower(config.context)
        self.head = None if config.tie_embeddings else Linear(d, config.vocab_size, bias=False)
        self.mtp = MTP(config.mtp, config.context) if config.mtp else None
        self.vision = build_vision(config.vision) if config.vision else None
        self.projector = Connector(config.vision, d) if config.vision else None
        self.sound = AudioEncoder(config.sound) if config.sound else None
        self.sound_projector = _sound_projector(config.sound, d) if config.sound else None
        self.denoiser = Tower(config.denoiser) if config.denoiser else None
        self.tokens = _token_head(config) if config.diffusion else None
        self.latents = LatentHead(config.denoiser.d_model, config.latent) if config.latent else None
        self.sound_latents = SoundHead(config.denoiser.d_model, config.sound_latent) if config.sound_latent else None
        self.actions = ActionHead(config.denoiser.d_model, config.action) if config.action else None
        self.codec = PatchCodec(config.latent.codec) if config.latent and config.latent.codec else None
        sounds = config.sound_latent.codec if config.sound_latent else None
        self.sound_codec = MelCodec(sounds) if sounds else None
        if not self.embed.weight.is_meta:
            nn.init.normal_(self.embed.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    # -- understanding -------------------------------------------------------------------------------------------------

    def new_cache(self, batch: int, capacity: int = 0, format: CacheFormat | None = None) -> Cache:
        """An empty cache of the context tower with room for ``capacity`` tokens a row; ``format`` None: the model's."""
        return self.context.new_cache(batch, capacity, format or self.cache_format)

    def logits(self, inputs: Tensor | Inputs, cache: Cache | None = None, last_only: bool = False) -> Tensor:
        """Next-token logits, float32: (b, n, v), or (b, 1, v) of each row's last real token.

        With a cache the call continues it: prefill, chunks of a prefill and single steps are the same call.
        """
        return self.predict(self.read(inputs, cache, last=1 if last_only else None))

    def read(
        self,
        inputs: Tensor | Inputs,
        cache: Cache | None = None,
        seen: Sequence[Tensor] | None = None,
        heard: Sequence[Tensor] | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Hidden states (b, n, d) of the context tower, after its final norm.

        With ``last`` only those of each row's last so many real tokens, (b, last, d): 0 where the cache is all that is
        wanted. The layers behind the last that mixes tokens then leave out the others.

        ``seen`` and ``heard`` may hold the tokens of media where they were encoded already, in the order of
        ``inputs.pixels`` and ``inputs.sounds``, as :meth:`see_all` and :meth:`hear` give them.
        """
        inputs = self._as_inputs(inputs)
        return self._through(inputs, self._embedded(inputs, cache, seen, heard), cache, last)

    def read_both(self, inputs: Tensor | Inputs, cache: Cache | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings (b, n, d), media's tokens among them, and what :meth:`read` makes of them."""
        inputs = self._as_inputs(inputs)
        embedded = self._embedded(inputs, cache)
        return embedded.tokens, self._through(inputs, embedded, cache, None)

    def _embedded(
        self,
        inputs: Inputs,
        cache: Cache | None,
        seen: Sequence[Tensor] | None = None,
        heard: Sequence[Tensor] | None = None,
    ) -> "_Embedded":
        self._check_ids(inputs.input_ids)
        x = self.embed(inputs.input_ids)
        if not inputs.has_media:
            return _Embedded(x, None, {})
        places = self._find_media(inputs)
        positions = self._positions_of(places, inputs, cache)
        heard = self.hear(inputs.sounds) if heard is None else heard
        x, added = self._pour(x, places, self._seen(inputs, seen), heard)
        return _Embedded(x, positions, added)

    def _through(self, inputs: Inputs, embedded: "_Embedded", cache: Cache | None, last: int | None) -> Tensor:
        x, positions, added = embedded
        return self.context(
            x, cache=cache, mask=inputs.mask, segments=inputs.segments, positions=positions, added=added, last=last
        )

    def predict(self, hidden: Tensor) -> Tensor:
        """Hidden (..., d) -> logits (..., v) in float32 (float64 where the weights are)."""
        logits = self.head(hidden) if self.head is not None else project(hidden, self.embed.weight)
        return logits.to(wide(logits.dtype))

    # -- media ---------------------------------------------------------------------------------------------------------

    def see(self, pixels: Tensor) -> Tensor:
        """Images (b, 3, H, W) or tubelets (b, f, 3, H, W) of one size, in [0, 1] -> tokens (b, h w / shuffle^2, d)."""
        return self.project(self._eyes()(pixels), pixels.shape[-2:])

    def project(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Patch features (b, h w, d_vision) of images of ``size`` pixels -> tokens (b, h w / shuffle^2, d)."""
        return self.projector.project(features, self.vision.grid(size))

    def see_all(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Tokens (n, d) of images (3, H, W) and videos (frames, 3, H, W) of any sizes, encoded together.

        Where the tower has DeepStack the tokens are (1 + taps, n, d): the first of these are the tokens themselves.
        """
        eyes, units, owners = self._eyes(), [], []
        for i, item in enumerate(pixels):
            own = list(item.to(self.device).split(self.config.vision.tubelet)) if item.dim() == 4 else [item]
            units += [unit.to(self.device) for unit in own]
            owners += [i] * len(own)
        projected: dict[int, Tensor] = {}
        for found in eyes.passes(units):  # tokens are several times smaller than the patches they are made of
            places, features = zip(*found, strict=True)
            projected.update(zip(places, self._project_all(features), strict=True))
        tokens: list[list[Tensor]] = [[] for _ in pixels]
        for place, owner in enumerate(owners):
            tokens[owner].append(projected[place])
        return [torch.cat(own, dim=-2) for own in tokens]

    def _project_all(self, units: Sequence[Features]) -> Iterator[Tensor]:
        """Tokens of each unit; those of one size are projected together, so that weights are read once."""
        if self.config.vision.deepstack:
            yield from map(self.projector, units)
            return
        for grid, same in groupby(units, key=lambda unit: unit.grid):
            yield from self.projector.project(torch.stack([unit.patches for unit in same]), grid)

    def hear(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Tokens (n, d) of sounds: log-mel features (frames, n_mels) of clips of any length."""
        if not clips:
            return []
        if self.sound is None:
            raise ValueError("this model has no sound encoder")
        tokens: list[Tensor] = []
        for start in range(0, len(clips), CLIPS_AT_ONCE):
            some = clips[start : start + CLIPS_AT_ONCE]
            behind = int(self.config.sound.last_frame)  # a frame that makes room for a token, but is not sound
            lengths = torch.tensor([len(clip) - behind for clip in some], device=self.device)
            features = pad_sequence([clip.to(self.device, self.dtype) for clip in some], batch_first=True)
            heard = self.sound_projector(self.sound(features, lengths))
            tokens += [row[: self.sound.tokens_of(len(clip))] for row, clip in zip(heard, some, strict=True)]
        return tokens

    def prune(self, video: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """The tokens of a video (frames, 3, H, W) that EVS keeps, and (tubelets, h w) True at their places."""
        (tokens,) = self.see_all([video])
        grid = self.image_grid(video.shape[-2:])
        flat = tokens if tokens.dim() == 2 else tokens[0]
        kept = retention_mask(flat.unflatten(0, (-1, grid[0] * grid[1])), rate)
        return tokens[..., kept.flatten(), :], kept

    def image_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens that an image of ``size`` (height, width) takes, before anything is encoded."""
        self._eyes()
        side = self.config.vision.token_pixels
        height, width = size
        if height % side or width % side or not height or not width:
            raise ValueError(f"an image of {height}x{width} pixels does not divide into tokens of {side}x{side}")
        return height // side, width // side

    def _eyes(self) -> nn.Module:
        if self.vision is None:
            raise ValueError("this model has no vision encoder")
        return self.vision

    def pieces(self, pixels: Sequence[Tensor], kept: Sequence[Tensor | None] = ()) -> list[list[Piece]]:
        """The runs that each image or video takes, in order."""
        found = []
        for i, item in enumerate(pixels):
            tubelet = self.config.vision.tubelet if self.config.vision else 1
            frames = len(item) if item.dim() == 4 else tubelet
            if frames % tubelet or not frames:
                raise ValueError(f"a video has {frames} frames; they must be a multiple of the tubelet, {tubelet}")
            found.append(pieces_of(self.image_grid(item.shape[-2:]), kept[i] if kept else None, frames // tubelet))
        return found

    def find_media(self, ids: Tensor, kind: str) -> Tensor:
        """(b, n) True at the placeholders of ``kind``: "image" (and video), or "sound"."""
        names = {"image": ("image", "video"), "sound": ("sound",)}[kind]
        tokens = [self.config.special_tokens[name] for name in names if name in self.config.special_tokens]
        if not tokens:
            raise ValueError(f"this model's special_tokens name no {kind} placeholder")
        return torch.isin(ids, torch.tensor(tokens, device=ids.device))

    def _find_media(self, inputs: Inputs) -> "_Places":
        """Where the media of ``inputs`` go. Placeholders and media must agree; nothing is encoded before they do."""
        if inputs.segments is not None:
            raise ValueError("packed sequences with media are not supported: give each its own row")
        flags = heard = None
        owned = self.pieces(inputs.pixels, inputs.kept)
        pieces = [p for own in owned for p in own if p.size]
        sizes = [sum(p.size for p in own) for own in owned]
        runs = []
        if inputs.pixels:
            flags = self.find_media(inputs.input_ids, "image")
            runs = media_runs(flags, [p.size for p in pieces])
        if inputs.sounds:
            if self.sound is None:
                raise ValueError("this model has no sound encoder")
            heard = self.find_media(inputs.input_ids, "sound")
            media_runs(heard, [self.sound.tokens_of(len(clip)) for clip in inputs.sounds], "sound")
        return _Places(flags, heard, pieces, runs, sizes)

    def _positions_of(self, places: "_Places", inputs: Inputs, cache: Cache | None) -> Tensor | None:
        """(3, b, n) positions that follow from the images' grids; None where the tower has no rotary positions."""
        if self.context.rotary is None or places.flags is None:
            return None
        ids = inputs.input_ids
        first = cache.next_positions() if cache is not None else torch.zeros(len(ids), dtype=torch.int64)
        return media_positions(ids.shape, inputs.mask, places.runs, places.pieces, first).to(ids.device)

    def _seen(self, inputs: Inputs, seen: Sequence[Tensor] | None) -> list[Tensor]:
        """Tokens of every image and video: those that are known, and the others encoded."""
        known = list(seen) if seen is not None else list(inputs.seen) or [None] * len(inputs.pixels)
        missing = [i for i, tokens in enumerate(known) if tokens is None]
        if missing:
            for i, tokens in zip(missing, self.see_all([inputs.pixels[i] for i in missing]), strict=True):
                known[i] = tokens
        return known

    def _pour(
        self, x: Tensor, places: "_Places", seen: Sequence[Tensor], heard: Sequence[Tensor]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Embeddings (b, n, d) with the media's tokens in place of their placeholders, and what DeepStack adds."""
        added = {}
        if places.flags is not None:
            wanted, given = places.sizes, [tokens.shape[-2] for tokens in seen]
            if wanted != given:
                raise ValueError(f"the images take {wanted} tokens; those given have {given}")
            # The runs stand in the media's order, so the tokens can be poured in one after the other.
            tokens, where = torch.cat(list(seen), dim=-2).to(x.dtype), places.flags[..., None]
            first = tokens if tokens.dim() == 2 else tokens[0]
            x = x.masked_scatter(where, first)
            for (_, layer), tap in zip(
                self.config.vision.deepstack, tokens[1:] if tokens.dim() == 3 else (), strict=True
            ):
                added[layer] = torch.zeros_like(x).masked_scatter(where, tap)
        if places.heard is not None:
            x = x.masked_scatter(places.heard[..., None], torch.cat(list(heard)).to(x.dtype))
        return x, added

    # -- generation ----------------------------------------------------------------------------------------------------

    def velocity(self, state: State, t: Tensor, context: Cache, scene: Scene | None = None) -> State:
        """Direction of the noisy ``state`` at time t (b,), given the prompt's cache.

        Latents of pictures (b, c, H, W) or videos (b, c, T, H, W) -> the same shape; or several streams by name that
        are denoised together (:mod:`omni.streams`) -> a dict of their shapes. ``scene`` says what is given, how fast
        time passes, and whose actions they are.
        """
        found, _ = self.denoise(state, t, context, scene)
        return found["video"] if isinstance(state, Tensor) else found

    def denoise(
        self, state: State, t: Tensor, context: Cache, scene: Scene | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of each stream the :meth:`velocity`, and what it is read from: the denoiser tower's hidden states (b, n, d).

        Pictures or a video alone are the stream "video".
        """
        scene, streams, heads = scene or Scene(), self._streams(state), self._heads()
        packed = heads.pack(streams, scene, context.next_positions() + self.config.latent.position_offset)
        hidden = self.denoiser(
            packed.tokens,
            context=context,
            positions=packed.positions,
            causal=False,
            time=t,
            noisy=packed.noisy,
            groups=packed.groups,
        )
        parts = dict(zip(packed.counts, hidden.split(list(packed.counts.values()), dim=1), strict=True))
        return heads.unpack(parts, streams, t, scene), parts

    def denoise_tokens(self, block: Tensor, t: Tensor, context: Cache, where: Tensor | None = None) -> Tensor:
        """What each token of a block is, masked or not: logits (b, n, v) at its own place, -inf at the mask.

        block (b, n) int64, t (b,) the masked share of it, ``context`` what stands before it; the context is only read.
        ``where`` (b, n): give the logits (m, v) of these places only.
        """
        if self.tokens is None:
            raise ValueError("this model has no denoiser for tokens")
        self._check_ids(block)
        places = context.next_positions()[:, None] + torch.arange(block.shape[1], device=block.device)
        hidden = self.denoiser(
            self.tokens.read(block), context=context, positions=places.expand(3, -1, -1), causal=False, time=t
        )
        return self.tokens.write(hidden if where is None else hidden[where])

    def contexts(self, ids: Tensor, rows: Tensor, starts: Tensor) -> Cache:
        """What the context tower knows before many places of texts: a cache of k rows, after one reading.

        Row i has read the first ``starts[i]`` tokens of the text ``rows[i]`` of ids (b, n), and hangs on no other.
        """
        ids = ids[:, : int(starts.max())]
        cache = self.new_cache(*ids.shape)
        cache.begin()
        self.read(ids, cache, last=0)
        return cache.branch(rows, starts)

    def _streams(self, state: State) -> dict[str, Tensor]:
        """In the weights' type."""
        if self.latents is None:
            raise ValueError("this model has no denoiser for image latents")
        streams = {"video": state} if isinstance(state, Tensor) else state
        return {name: x.to(self.dtype) for name, x in streams.items()}

    def _heads(self) -> Heads:
        return Heads(self.latents, self.sound_latents, self.actions)

    # -- inputs --------------------------------------------------------------------------------------------------------

    def prepare(self, messages: list, **options: Any) -> Inputs:
        """OpenAI-style messages (or a list of conversations) -> inputs, rows padded on the left.

        See :func:`omni.prepare.prepare`: ``pruning``, ``fps`` and ``max_frames`` of videos; what else is given goes to
        the chat template (thinking, tools, ...).
        """
        from omni.prepare import prepare

        return prepare(self, messages, **options)

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


class _Embedded(NamedTuple):
    """What the context tower is given."""

    tokens: Tensor  # (b, n, d)
    positions: Tensor | None  # (3, b, n); None: each token's index
    added: dict[int, Tensor]  # layer -> (b, n, d) that is added behind it


class _Places(NamedTuple):
    """Where a call's media go."""

    flags: Tensor | None  # (b, n) True at placeholders of images and videos
    heard: Tensor | None  # (b, n) True at placeholders of sounds
    pieces: list[Piece]  # of images and videos
    runs: list[tuple[int, int, int]]  # row, start and stop of each piece
    sizes: list[int]  # tokens of each image and video


def _token_head(config: OmniConfig) -> TokenHead:
    return TokenHead(config.denoiser.d_model, config.vocab_size, config.special_tokens["mask"])


def _sound_projector(config: SoundConfig, d: int) -> Projector:
    return Projector(config.d_model, config.d_projector, d)

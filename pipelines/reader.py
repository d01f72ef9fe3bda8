"""A model and its cache as the callables that the next-token loop wants: the prompt in chunks, then token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from omni.cache import Cache, CacheFormat
from omni.decoders.autoregressive import prefill, spans
from omni.inputs import Inputs, media_runs
from omni.model import Omni

CHUNK = 2048  # tokens of the prompt read at once
RESERVE = 1024  # tokens of room made beforehand; longer answers make the cache grow
LONG = 4  # chunks from which on a progress bar is shown


class Drafts(NamedTuple):
    """What drafts go on from: the prediction block's cache, and the trunk's last hidden state (1, 1, d)."""

    block: Cache
    hidden: Tensor


@dataclass
class Kept:
    """A conversation's tokens and media, and the cache that has read them."""

    inputs: Inputs
    ids: list[int]
    cache: Cache
    drafts: Drafts | None = None

    def begins(self, inputs: Inputs) -> bool:
        """Whether ``inputs`` (one row) is these tokens and more."""
        n = len(self.ids)
        if inputs.input_ids.shape[1] <= n or inputs.input_ids[0, :n].tolist() != self.ids:
            return False
        media = ("pixels", "sounds", "kept")
        return all(_continues(getattr(self.inputs, name), getattr(inputs, name)) for name in media)


def _continues(old: Sequence[Tensor | None], new: Sequence[Tensor | None]) -> bool:
    """Whether ``new`` begins with the tensors of ``old``."""
    return len(old) <= len(new) and all(map(_equal, old, new))


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


class Reader:
    """The model and its cache, as the callables that the loop wants; remembers what the cache has read."""

    def __init__(
        self, model: Omni, inputs: Inputs, kept: Kept | None, answer: int, format: CacheFormat | None = None
    ) -> None:
        self.model = model
        self.inputs = inputs
        rows, n = inputs.input_ids.shape
        self.reused = 0 if kept is None else len(kept.ids)
        self._known = None if kept is None else kept.inputs
        self.cache = model.new_cache(rows, n + min(answer, RESERVE), format) if kept is None else kept.cache
        self.fed: list[int] = [] if kept is None else list(kept.ids)  # of the first row

    @torch.inference_mode()
    def read(self, chunk: int) -> Tensor:
        """Read the prompt; logits (b, v) behind it."""
        chunks = self._chunks(chunk)
        console = Console(stderr=True)
        shown = len(chunks) > LONG and console.is_terminal
        with Progress(console=console, transient=True, disable=not shown) as bar:
            task = bar.add_task("reading", total=len(chunks))
            logits = prefill(chunks, self._read, lambda done, _: bar.update(task, completed=done))
        self.fed = self.inputs.input_ids[0].tolist()
        return logits

    def _read(self, chunk: Inputs) -> Tensor:
        return self.model.logits(chunk, self.cache, last_only=True)[:, -1]

    def _chunks(self, size: int) -> list[Inputs]:
        """The prompt behind what is reused, cut between the runs of its media."""
        return split(self.model, self._rest(), size)

    def _rest(self) -> Inputs:
        """The prompt without what the cache has read."""
        whole, n = self.inputs, self.reused
        if self._known is None:
            return whole
        seen, heard = len(self._known.pixels), len(self._known.sounds)
        return replace(
            whole,
            input_ids=whole.input_ids[:, n:],
            mask=None if whole.mask is None else whole.mask[:, n:],
            pixels=whole.pixels[seen:],
            sounds=whole.sounds[heard:],
            kept=whole.kept[seen:],
            seen=whole.seen[seen:],
        )

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        logits = self.model.logits(tokens[:, None], self.cache, last_only=True)[:, -1]
        self.fed.append(int(tokens[0]))
        return logits

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        self.cache = self.cache.select(rows)

    @property
    def settled(self) -> bool:
        """Whether nothing was broken off half read."""
        return not self.cache.in_window

    def drafts(self) -> Drafts | None:
        """What a drafting reader needs to go on; a plain one knows nothing of it."""
        return None


class _Unit(NamedTuple):
    """One run of an image or of a tubelet, as an image or video of its own."""

    pixels: Tensor
    kept: Tensor | None
    seen: Tensor | None
    size: int


def split(model: Omni, inputs: Inputs, size: int) -> list[Inputs]:
    """``inputs`` in chunks of about ``size`` tokens; no run of an image, tubelet or clip of sound is cut."""
    ids, mask = inputs.input_ids, inputs.mask
    units = list(_units(model, inputs))
    seen = media_runs(model.find_media(ids, "image"), [u.size for u in units]) if units else []
    lengths = [model.sound.tokens_of(len(clip)) for clip in inputs.sounds]
    heard = media_runs(model.find_media(ids, "sound"), lengths, "sound") if lengths else []
    chunks = []
    for start, stop in spans(ids.shape[1], size, [(a, b) for _, a, b in [*seen, *heard]]):
        inside = [unit for unit, (_, a, _) in zip(units, seen, strict=True) if start <= a < stop]
        sounds = tuple(clip for clip, (_, a, _) in zip(inputs.sounds, heard, strict=True) if start <= a < stop)
        chunk = Inputs(ids[:, start:stop], None if mask is None else mask[:, start:stop], sounds=sounds)
        media = zip(("pixels", "kept", "seen"), zip(*inside, strict=True), strict=False) if inside else ()
        chunks.append(replace(chunk, **dict(media)))
    return chunks


def _units(model: Omni, inputs: Inputs) -> Iterator[_Unit]:
    """Every run that has tokens."""
    for i, pieces in enumerate(model.pieces(inputs.pixels, inputs.kept)):
        pixels, kept = inputs.pixels[i], inputs.kept[i] if inputs.kept else None
        seen = inputs.seen[i] if inputs.seen else None
        parts = [pixels] if pixels.dim() == 3 else pixels.split(len(pixels) // len(pieces))
        tokens = [None] * len(pieces) if seen is None else seen.split([p.size for p in pieces], dim=-2)
        for j, piece in enumerate(pieces):
            if piece.size:
                yield _Unit(parts[j], None if kept is None else kept[j : j + 1], tokens[j], piece.size)

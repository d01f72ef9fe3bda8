"""A model and its cache as the callables that the next-token loop wants: the prompt in chunks, then token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from omni.cache import Cache
from omni.decoders.autoregressive import prefill, spans
from omni.inputs import Inputs, image_runs
from omni.model import Omni

CHUNK = 2048  # tokens of the prompt read at once
RESERVE = 1024  # tokens of room made beforehand; longer answers make the cache grow
LONG = 4  # chunks from which on a progress bar is shown


@dataclass
class Kept:
    """A conversation's tokens and images, and the cache that has read them."""

    ids: list[int]
    pixels: tuple[Tensor, ...]
    cache: Cache

    def begins(self, inputs: Inputs) -> bool:
        """Whether ``inputs`` (one row) is these tokens and more."""
        n, seen = len(self.ids), len(self.pixels)
        if inputs.input_ids.shape[1] <= n or inputs.input_ids[0, :n].tolist() != self.ids:
            return False
        pairs = zip(self.pixels, inputs.pixels[:seen], strict=False)
        return len(inputs.pixels) >= seen and all(torch.equal(a, b) for a, b in pairs)


class Reader:
    """The model and its cache, as the callables that the loop wants; remembers what the cache has read."""

    def __init__(self, model: Omni, inputs: Inputs, kept: Kept | None, answer: int) -> None:
        self.model = model
        self.inputs = inputs
        rows, n = inputs.input_ids.shape
        self.reused = 0 if kept is None else len(kept.ids)
        self._seen = 0 if kept is None else len(kept.pixels)
        self.cache = model.new_cache(rows, n + min(answer, RESERVE)) if kept is None else kept.cache
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
        """The prompt behind what is reused, cut between images."""
        ids, mask = self.inputs.input_ids[:, self.reused :], self.inputs.mask
        pixels = self.inputs.pixels[self._seen :]
        pieces = self._image_pieces(ids, pixels)
        chunks = []
        for start, stop in spans(ids.shape[1], size, [(a, b) for _, a, b in pieces]):
            inside = tuple(p for p, (_, a, _) in zip(pixels, pieces, strict=True) if start <= a < stop)
            chunks.append(Inputs(ids[:, start:stop], None if mask is None else mask[:, start:stop], inside))
        return chunks

    def _image_pieces(self, ids: Tensor, pixels: Sequence[Tensor]) -> list[tuple[int, int, int]]:
        if not pixels:
            return []
        grids = [self.model.image_grid(p.shape[-2:]) for p in pixels]
        return image_runs(ids == self.model.config.special_tokens["image"], [h * w for h, w in grids])

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        logits = self.model.logits(tokens[:, None], self.cache, last_only=True)[:, -1]
        self.fed.append(int(tokens[0]))
        return logits

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        self.cache = self.cache.select(rows)

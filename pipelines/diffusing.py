"""A model with a denoiser of tokens as what block diffusion wants, and what a caller may ask of it.

prompt ── context tower ──> cache
denoise  blocks of some rows ── denoiser tower, reading those rows of the cache ──> logits
commit   tokens ── context tower ──> cache, longer
verify   the same in a window, with the context's logits; accept cuts the window to what holds
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from omni.cache import Cache, CacheFormat, MambaSlot
from omni.decoders.block_diffusion import Unmasking
from omni.inputs import Inputs
from omni.model import Omni
from omni.pipelines.drafting import ROLLBACKS
from omni.pipelines.reader import Kept, Reader

DECODERS = ("plain", "diffusion")
ABLATIONS = ("seeds", "remask", "time")
"""What can be left out, to see what it is worth: the context's Mamba states, which are zeros then; looking again at
what is not sure; and the time, which is always :data:`FROZEN_TIME`."""
FROZEN_TIME = 0.5


@dataclass(frozen=True)
class Diffusion:
    """How an answer is denoised. ``lossless``: the context judges every block; ``ablate``: some of ABLATIONS."""

    unmasking: Unmasking
    lossless: bool = False
    ablate: frozenset[str] = frozenset()


def diffusion_of(
    model: Omni,
    decode: str,
    *,
    block: int | None,
    steps: int | None,
    threshold: float | None,
    lossless: bool,
    ablate: Collection[str],
) -> Diffusion | None:
    """What is asked for; None is plain decoding. What is not given is as the model was trained.

    ValueError where options clash or the model cannot do it.
    """
    if decode not in DECODERS:
        raise ValueError(f"decode is {decode!r}; known: {', '.join(DECODERS)}")
    given = {"block": block, "steps": steps, "threshold": threshold, "lossless": lossless or None}
    given = {name: value for name, value in (given | {"ablate": tuple(ablate) or None}).items() if value is not None}
    if decode == "plain":
        if given:
            raise ValueError(f"{', '.join(given)} belong to decode='diffusion'; decode is {decode!r}")
        return None
    if model.tokens is None:
        raise ValueError("decode is 'diffusion', but this model has no denoiser for tokens")
    unknown = sorted(set(ablate) - set(ABLATIONS))
    if unknown:
        raise ValueError(f"ablate names {unknown}; known: {', '.join(ABLATIONS)}")
    own = model.config.diffusion
    chosen = {"block": own.block_size, "steps": own.steps, "threshold": own.threshold}
    chosen |= {name: value for name, value in given.items() if name in chosen}
    if "remask" in ablate:
        chosen["steps"] = 1
    return Diffusion(Unmasking(**chosen), lossless, frozenset(ablate))


class DiffusingReader(Reader):
    """A :class:`Reader` that denoises; see :class:`omni.decoders.block_diffusion.Verifier`.

    ``rollback``: how recurrent states go back where a block does not hold, see :class:`omni.cache.Cache`.
    """

    def __init__(
        self,
        model: Omni,
        inputs: Inputs,
        kept: Kept | None,
        answer: int,
        rollback: str = "replay",
        ablate: Collection[str] = (),
        format: CacheFormat | None = None,
    ) -> None:
        super().__init__(model, inputs, kept, answer, format)
        if rollback not in ROLLBACKS:
            raise ValueError(f"rollback is {rollback!r}; known: {', '.join(ROLLBACKS)}")
        self.mask = model.tokens.mask
        self.snapshots = rollback == "snapshot"
        self.ablate = frozenset(ablate)
        self._contexts: tuple[list[int], Cache] | None = None  # rows of the batch, and what they have read

    @torch.inference_mode()
    def denoise(self, blocks: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        context = self._context(rows)
        if "time" in self.ablate:
            t = torch.full_like(t, FROZEN_TIME)
        device = self.model.device
        return self.model.denoise_tokens(blocks.to(device), t.to(device), context)

    def _context(self, rows: Tensor) -> Cache:
        """The cache of these rows; it is copied only where rows are done with their block before others."""
        wanted = rows.tolist()
        if self._contexts is None or self._contexts[0] != wanted:
            whole = len(wanted) == self.cache.batch
            own = self.cache if whole else self.cache.select(rows.to(self.model.device))
            self._contexts = wanted, without_seeds(own) if "seeds" in self.ablate else own
        return self._contexts[1]

    @torch.inference_mode()
    def commit(self, tokens: Tensor, counts: Tensor) -> None:
        mask = torch.arange(tokens.shape[1]) < counts[:, None]
        inputs = Inputs(tokens, None if bool(mask.all()) else mask).to(self.model.device)
        self.model.read(inputs, self.cache, last=0)
        self._read_on(tokens, counts)

    @torch.inference_mode()
    def verify(self, tokens: Tensor) -> Tensor:
        self.cache.begin(self.snapshots)
        self._verified = tokens
        return self.model.logits(tokens.to(self.model.device), self.cache)

    @torch.inference_mode()
    def accept(self, counts: Tensor) -> None:
        self.cache.commit(counts.to(self.model.device))
        self._read_on(self._verified, counts)

    def _read_on(self, tokens: Tensor, counts: Tensor) -> None:
        self._contexts = None
        self.fed += tokens[0, : int(counts[0])].tolist()

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        super().keep(rows.to(self.model.device))
        self._contexts = None


def without_seeds(cache: Cache) -> Cache:
    """The same keys and values, and recurrent states of zero."""
    slots = [s.map(torch.zeros_like) if isinstance(s, MambaSlot) else s for s in cache.slots]
    return Cache(slots, cache.lengths, cache.positions)

"""Which layers a model can best do without.

    mse      iterative: of the layers that are left, each in turn is left out, and the logits compared with those of the
             whole model; the one whose loss moves them least goes; and so on. Its order is kept in a file as it grows.
    cosine   one pass: a layer's score is the sum over tokens of 1 - cos(what enters it, what leaves it)

Sources: ``reference`` generation_and_compression, B.1 (Nano 9B v2, logit MSE against the original) and B.3 (Model
Optimizer, cosine, one shot). Numbers of layers of a letter can be fixed: the 9B keeps four attention layers, for its
cache and its long context.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.config import ConfigError, TowerConfig
from omni.inputs import Inputs
from omni.model import Omni
from omni.tensorfile import read_json, write_json
from omni.tower import Tower

METHODS = ("mse", "cosine")


@dataclass(frozen=True)
class DepthOrder:
    """Context layers in the order in which they go, and the score that each had then."""

    method: str
    layers: tuple[int, ...]
    scores: tuple[float, ...]

    def kept(self, tower: TowerConfig, count: int) -> tuple[int, ...]:
        """The ``count`` layers that are left. ConfigError where the order does not go so far."""
        gone = tower.n_layers - count
        if not 0 <= gone <= len(self.layers) or count < 1:
            raise ConfigError(
                f"{count} layers are to stay; the order knows {len(self.layers)} of {tower.n_layers} to go"
            )
        return tuple(i for i in range(tower.n_layers) if i not in self.layers[:gone])


class Skip(nn.Module):
    """Takes a layer's place and does nothing."""

    def forward(self, x: Tensor, *args: object) -> Tensor:
        return x


@contextmanager
def skipping(tower: Tower, layers: Sequence[int]) -> Iterator[None]:
    """Within the block the tower goes without these layers."""
    held = {i: tower.blocks[i] for i in layers}
    try:
        for i in held:
            tower.blocks[i] = Skip()
        yield
    finally:
        for i, block in held.items():
            tower.blocks[i] = block


class Steady:
    """The context tower's own call for one batch, to be made again without some layers; media are encoded once."""

    def __init__(self, model: Omni, inputs: Inputs) -> None:
        self.model, self.called = model, None
        with ExitStack() as stack:
            hook = model.context.register_forward_pre_hook(self._keep, with_kwargs=True)
            stack.callback(hook.remove)
            self.logits = model.logits(inputs)
        ids = inputs.input_ids
        self.real = torch.ones_like(ids, dtype=torch.bool) if inputs.mask is None else inputs.mask

    def _keep(self, tower: nn.Module, args: tuple, kwargs: dict) -> None:
        self.called = args, kwargs

    def without(self, layers: Sequence[int]) -> Tensor:
        """Logits (b, n, v)."""
        args, kwargs = self.called
        with skipping(self.model.context, layers):
            return self.model.predict(self.model.context(*args, **kwargs))

    def error(self, layers: Sequence[int]) -> tuple[float, int]:
        """Sum over real tokens of the mean squared error of the logits without ``layers``, and those tokens."""
        squares = (self.without(layers) - self.logits).square().mean(dim=-1)
        return float((squares * self.real).sum()), int(self.real.sum())


@torch.no_grad()
def rank(
    model: Omni,
    batches: Callable[[], Iterator[Inputs]],
    remove: int,
    *,
    method: str = "mse",
    pinned: Mapping[str, int] | None = None,
    journal: Path | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> DepthOrder:
    """The order in which ``remove`` layers of the context tower go.

    Args:
        batches: gives the calibration inputs, the same at each call.
        pinned: pattern letter -> number of its layers that are left at the end.
        journal: file that the order is written to as it grows; a later call with the same model, method, numbers and
            inputs goes on behind it.
        advance: is told of each forward pass.

    Raises:
        ConfigError: an unknown method, more layers than there are, or numbers that cannot be met.
    """
    tower = model.context.config
    if method not in METHODS:
        raise ConfigError(f"depth is ranked by {method!r}; known: {', '.join(METHODS)}")
    quotas = _quotas(tower, remove, pinned or {})
    model.eval()
    if method == "cosine":
        return _one_shot(tower, _cosines(model, batches, advance), remove, quotas)
    said = {"model": _fingerprint(model), "inputs": _digest(batches()), "pinned": dict(pinned or {})}
    said["remove"] = remove if pinned else None  # without pins the order is the same however far it goes
    order, scores = _resumed(journal, said)
    while len(order) < remove:
        allowed = _allowed(tower, order, quotas)
        errors = _errors(model, batches, order, allowed, advance)
        lowest = min(allowed, key=lambda i: errors[i])
        order.append(lowest)
        scores.append(errors[lowest])
        if journal is not None:
            write_json(journal, {**said, "layers": order, "scores": scores})
    return DepthOrder("mse", tuple(order[:remove]), tuple(scores[:remove]))


def passes(tower: TowerConfig, remove: int, batches: int, method: str) -> int:
    """Forward passes that :func:`rank` takes at most, for a progress bar."""
    if method == "cosine":
        return batches
    return batches * sum(tower.n_layers - gone for gone in range(remove))


def _quotas(tower: TowerConfig, remove: int, pinned: Mapping[str, int]) -> dict[str, int]:
    """How many layers of each letter may go at most; "" stands for all letters that are not pinned."""
    if not 0 <= remove < tower.n_layers:
        raise ConfigError(f"{remove} layers are to go; the tower has {tower.n_layers}, and at least one must stay")
    quotas = {}
    for letter, count in pinned.items():
        there = tower.pattern.count(letter)
        if not 0 <= count <= there:
            raise ConfigError(f"{count} layers {letter!r} are to stay; the tower has {there}")
        quotas[letter] = there - count
    rest = remove - sum(quotas.values())
    others = sum(letter not in pinned for letter in tower.pattern)
    if not 0 <= rest <= others:
        left = ", ".join(f"{count} {letter!r}" for letter, count in pinned.items())
        raise ConfigError(f"{tower.n_layers - remove} layers are to stay, {left} of them: that cannot be met")
    return {**quotas, "": rest}


def _allowed(tower: TowerConfig, gone: Sequence[int], quotas: Mapping[str, int]) -> list[int]:
    """Layers that may go next."""
    left = dict(quotas)
    for i in gone:
        letter = tower.pattern[i]
        left[letter if letter in quotas else ""] -= 1
    letters = tower.pattern
    return [i for i, c in enumerate(letters) if i not in gone and left[c if c in quotas else ""] > 0]


def _errors(
    model: Omni,
    batches: Callable[[], Iterator[Inputs]],
    gone: Sequence[int],
    allowed: Sequence[int],
    advance: Callable[[int], None],
) -> dict[int, float]:
    """Mean squared error of the logits without ``gone`` and each of ``allowed``."""
    sums, count = dict.fromkeys(allowed, 0.0), 0
    for inputs in batches():
        steady = Steady(model, inputs.to(model.device))
        for i in allowed:
            error, tokens = steady.error([*gone, i])
            sums[i] += error
            advance(1)
        count += tokens
    if not count:
        raise ConfigError("there is nothing to calibrate with: no batch was given")
    return {i: error / count for i, error in sums.items()}


def _one_shot(tower: TowerConfig, scores: Tensor, remove: int, quotas: Mapping[str, int]) -> DepthOrder:
    order: list[int] = []
    while len(order) < remove:
        order.append(min(_allowed(tower, order, quotas), key=lambda i: float(scores[i])))
    return DepthOrder("cosine", tuple(order), tuple(float(scores[i]) for i in order))


def _cosines(model: Omni, batches: Callable[[], Iterator[Inputs]], advance: Callable[[int], None]) -> Tensor:
    """(n_layers,): sums over real tokens of 1 - cos(x, layer(x))."""
    tower = model.context
    sums = torch.zeros(len(tower.blocks), dtype=torch.float64)

    def note(i: int, args: tuple, out: Tensor) -> None:
        x, layout = args[:2]
        apart = 1 - F.cosine_similarity(x.float(), out.float(), dim=-1)
        sums[i] += float((apart if layout.padding is None else apart.masked_fill(layout.padding, 0.0)).sum())

    with ExitStack() as stack:
        for i, block in enumerate(tower.blocks):
            hook = block.register_forward_hook(lambda module, args, out, i=i: note(i, args, out))
            stack.callback(hook.remove)
        for inputs in batches():
            model.read(inputs.to(model.device))
            advance(1)
    return sums


def _resumed(journal: Path | None, said: Mapping[str, object]) -> tuple[list[int], list[float]]:
    """What a broken-off run of the same task found."""
    if journal is None or not journal.exists():
        return [], []
    held = read_json(journal)
    if any(held.get(name) != value for name, value in said.items()):
        raise ConfigError(f"{journal} belongs to another model or other inputs; remove it to begin anew")
    return list(held["layers"]), list(held["scores"])


def _fingerprint(model: Omni) -> str:
    """A few numbers of every tensor: another model has others."""
    digest = hashlib.sha256()
    for name, tensor in model.context.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten()[:8].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(batches: Iterator[Inputs]) -> str:
    digest = hashlib.sha256()
    for inputs in batches:
        digest.update(inputs.input_ids.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]

"""What a training module keeps beside the model: the average of its weights and the heads that are told where to look;
and what weights it starts from."""

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from omni import losses
from omni.encoders.vision import VisionEncoder
from omni.mixers.layout import Layout
from omni.model import Omni
from omni.quantization.training import HIGH, Clock, train_in_four_bits
from omni.recipe import Recipe


class Pointer:
    """The first head of one of the context tower's attention layers, whose queries and keys it keeps while training.

    Where to look is learnt as such, beside the tokens. Only this head is asked, at the price of projecting once more.
    ``before`` counts attention layers from the last; there may be none so early.
    """

    def __init__(self, model: Omni, before: int = 0) -> None:
        layers = [block.mixer for block in model.context.blocks if block.letter == "*"]
        self.layer = layers[-1 - before] if len(layers) > before else None
        self.called: tuple[Tensor, Layout] | None = None
        self.learning = False
        if self.layer is not None:
            self.layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple) -> None:
        self.called, self.learning = inputs[:2], layer.training and torch.is_grad_enabled()

    def looked_at(self, hidden: Tensor) -> Tensor:
        """(b, n, d) of the latest reading, what that layer is given: only what is known there can still be looked up.

        ``hidden``, what came out of the tower, where that has no attention.
        """
        return hidden if self.layer is None else self.called[0]

    def losses(self, targets: Sequence[Tensor]) -> list[Tensor]:
        """Of the latest reading, whose tokens are read from each of ``targets`` (b, n)."""
        if self.called is None or not self.learning:
            raise ValueError("pointer_weight needs a context tower with attention that is being trained")
        (queries, keys, _), self.called = self.layer.project(*self.called), None
        return [losses.pointed(queries[:, 0], keys[:, 0], own) for own in targets]


class Linker:
    """The first heads of the vision encoder's last block, told where to look from where a chart shows a value.

    What it is worth stands at an axis, what it is called below it or in a legend: mostly behind it, in reading order.
    """

    def __init__(self, model: Omni) -> None:
        self.block = model.vision.blocks[-1] if isinstance(model.vision, VisionEncoder) else None
        self.called: tuple | None = None
        if self.block is not None:
            self.block.register_forward_pre_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: tuple) -> None:
        self.called = inputs if block.training and torch.is_grad_enabled() else None

    def loss(self, targets: Tensor) -> Tensor:
        """Of the pictures of one size that were encoded last, whose patches look at ``targets`` (b, h w, heads)."""
        if self.called is None:
            raise ValueError("link_weight needs a vision encoder of transformer blocks that is being trained")
        (x, _, rotary), self.called = self.called, None
        b, patches, heads = targets.shape
        queries, keys, _ = self.block.project(x, rotary)
        queries, keys = (rearrange(t[:, :heads], "(b n) h p -> b h n p", b=b) for t in (queries, keys))
        prefix = keys.shape[2] - patches
        targets = targets.where(targets == losses.IGNORED, targets + prefix)
        return losses.linked(queries[:, :, prefix:], keys, targets.transpose(1, 2))


class Average(nn.Module):
    """Exponential average of a model's weights, kept in the run's checkpoints; warms up with the number of updates."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        for name, value in model.state_dict().items():
            self.register_buffer(name.replace(".", "/"), value.detach().clone())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + int(self.updates)) / (10 + int(self.updates)))
        for name, value in model.state_dict().items():
            average = self.get_buffer(name.replace(".", "/"))
            if value.is_floating_point():
                average.lerp_(value.detach(), 1 - decay)
            else:
                average.copy_(value)

    @torch.no_grad()
    def restart(self, model: nn.Module, prefix: str) -> None:
        """Averages of the weights whose names begin so are what the weights are now."""
        for name, value in model.state_dict().items():
            if name.startswith(prefix):
                self.get_buffer(name.replace(".", "/")).copy_(value)

    def weights(self) -> dict[str, Tensor]:
        """The averaged state dict."""
        return {n.replace("/", "."): b for n, b in self.named_buffers() if n != "updates"}


def in_four_bits(model: Omni, recipe: Recipe) -> Clock | None:
    """Swap what the recipe trains in four bits; the clock of its rounding, None where the recipe asks for none."""
    plan = recipe.four_bits
    if plan is None:
        return None
    keep = HIGH if plan.keep is None else plan.keep
    return train_in_four_bits(model, keep_first=plan.keep_first, keep_last=plan.keep_last, keep=keep, seed=recipe.seed)


def load_weights(module: nn.Module, source: str | Path) -> None:
    """Start from another run's checkpoint or from a saved model's folder.

    Strict, but for parts that the source was trained without; heads that serve training only are not in a folder.
    A denoiser of pictures alone begins with videos as :meth:`omni.decoders.heads.LatentHead.spread` says. A student's
    teacher is what it starts from.
    """
    state = _folder_state(source) if Path(source).is_dir() else _checkpoint_state(source)
    missing, unexpected = module.load_state_dict(state, strict=False)
    if unexpected:
        raise ValueError(f"{source} holds weights that the recipe's model has no place for: {unexpected[:5]}")
    if len(missing) == len(module.state_dict()):
        raise ValueError(f"{source} holds none of the model's weights")
    if "model.latents.next_in.weight" in missing:
        module.model.latents.spread()
        module.ema.restart(module.model, "latents.next_")
    if "distillation.taught" in missing:
        module.distillation.begin(module.model)


def _checkpoint_state(path: str | Path) -> dict[str, Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def _folder_state(folder: str | Path) -> dict[str, Tensor]:
    """A model's weights, as the weights and as their average."""
    from omni.families import load_folder

    weights = load_folder(Path(folder), device="cpu", dtype=torch.float32).state_dict()
    averages = {f"ema.{name.replace('.', '/')}": value.clone() for name, value in weights.items()}
    return {f"model.{name}": value for name, value in weights.items()} | averages

"""Small pictures and frames for the tests of vision towers, random weights, and how far two results lie apart."""

import torch

from omni.config import VisionConfig

RADIO_TINY = VisionConfig(
    d_model=24, n_layers=3, n_heads=3, d_ff=96, patch_size=4, n_prefix=5, max_grid=6, mean=(0.48, 0.46, 0.41),
    std=(0.27, 0.26, 0.28), tubelet=2, video_stem=True, d_projector=40,
)  # fmt: skip
D_TEXT = 20
SIZES = [(2, 4), (6, 6), (8, 2), (4, 4), (4, 2), (10, 14), (2, 2)]  # in patches


def draw(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Parameters away from their trivial values; layer scales, which no checkpoint has, stay at one."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            norm = p.dim() == 1 and name.endswith("weight")
            if "lambda1" not in name:
                p.normal_(generator=g).mul_(0.3 if p.dim() < 2 else 1.2 * p[0].numel() ** -0.5).add_(float(norm))
    return module.eval()


def unit(grid: tuple[int, int], seed: int, frames: int = 0, patch: int = 4) -> torch.Tensor:
    lead = (frames, 3) if frames else (3,)
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*lead, grid[0] * patch, grid[1] * patch, generator=g)


def normed(pixels: torch.Tensor, c: VisionConfig) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (c.mean, c.std))
    return (pixels - mean) / std


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    ours = ours.detach()
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error < 1e-4
    assert theirs.std() > 1e-2  # there is something to compare
    return error


def gradients_are_finite(outputs: list[torch.Tensor], *modules: torch.nn.Module) -> None:
    sum(out.square().mean() for out in outputs).backward()
    for module in modules:
        for name, p in module.named_parameters():
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
            assert p.grad.abs().max() > 0, name

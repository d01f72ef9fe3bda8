"""What the tests of kernels share: tolerances, and inputs of scans and experts."""

import torch
from torch import Tensor

TOLERANCE = {  # of the largest entry of the reference: (values, gradients)
    torch.float64: (1e-12, 1e-11),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (1e-2, 4e-2),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


READING = ("block", "all")  # paths that are for few tokens without gradients; their tests are test_kernels_few


def fast(paths):
    return [path.name for path in paths if path.name not in ("reference", *READING)]


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype, kind: int = 0) -> None:
    limit = TOLERANCE[dtype][kind] * max(expected.abs().max().item(), 0.1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit)


def random(*shape: int, dtype=torch.float64, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).to(dtype)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def scan_inputs(b: int, n: int, h: int, p: int, g: int, s: int, dtype=torch.float64) -> list[Tensor]:
    """x, dt, A, B, C, D, initial state. One row ends in padding: dt is 0 there."""
    torch.manual_seed(n * 31 + h)
    dt = torch.rand(b, n, h)
    dt[0, n - n // 4 :] = 0
    return [
        random(b, n, h, p, dtype=dtype),
        dt.to(dtype),
        -torch.rand(h).to(dtype) * 2,
        random(b, n, g, s, dtype=dtype),
        random(b, n, g, s, dtype=dtype),
        random(h, dtype=dtype),
        random(b, h, p, s, dtype=dtype),
    ]


def packed(b: int, n: int, ids: int = 3) -> Tensor:
    """Sorted ids in the first row; the last row comes back to an id that it had before."""
    segments = torch.randint(0, ids, (b, n)).sort(dim=1).values
    segments[-1, n // 2 :] = segments[-1, 0]
    return segments


def expert_inputs(t: int, e: int, k: int, d: int, f: int, dtype=torch.float64) -> tuple[Tensor, list[Tensor]]:
    """indices, and x, weights, up, down."""
    torch.manual_seed(t)
    indices = torch.randn(t, e).topk(k).indices
    weights = torch.rand(t, k).to(torch.promote_types(dtype, torch.float32))
    up, down = random(e, f, d, dtype=dtype, scale=d**-0.5), random(e, d, f, dtype=dtype, scale=f**-0.5)
    return indices, leaves(random(t, d, dtype=dtype), weights, up, down)

"""Training losses: pure functions, each with its reduction stated."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
PLACE_BETA = 0.02  # of the picture's side: smaller distances of places count squared


def next_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of predicting ``labels`` one step ahead.

    logits (b, n, v), labels (b, n) the tokens themselves, ``IGNORED`` where nothing is to be predicted. Zero when every
    label is ignored.
    """
    return tokens(logits[:, :-1], labels[:, 1:])


def tokens(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (b, n, v) at ``targets`` (b, n), without those that are ``IGNORED``; else zero."""
    targets = targets.flatten()
    summed = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum")
    return summed / (targets != IGNORED).sum().clamp(min=1)


def forward_kl(logits: Tensor, taught: Tensor, where: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean divergence KL(taught || own) of distributions over the last axis, at places ``where`` (b, n); else zero.

    logits and taught (b, n, v), both divided by the temperature; its square keeps the gradient's size (Hinton et al.,
    arXiv 1503.02531).
    """
    own, wanted = (x.float().div(temperature).log_softmax(dim=-1) for x in (logits, taught))
    divergence = (wanted.exp() * (wanted - own)).sum(dim=-1)
    return temperature**2 * (divergence * where).sum() / where.sum().clamp(min=1)


def flow(
    velocity: Tensor, data: Tensor, noise: Tensor, noisy: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Mean squared error of a velocity against ``noise - data`` (Cosmos 3, section 4.1).

    Over all elements, or over those that are ``noisy`` (flags of a shape that broadcasts to theirs); else zero.
    ``weight``, of such a shape too, multiplies the squares.
    """
    squares = (velocity.float() - (noise - data).float()).square()
    squares = squares if weight is None else squares * weight.float()
    if noisy is None:
        return squares.mean()
    noisy = noisy.expand_as(velocity).float()
    return (squares * noisy).sum() / noisy.sum().clamp(min=1)


def places(found: Tensor, tracks: Tensor) -> Tensor:
    """Mean distance along an axis of places (..., 2) from those of ``tracks``, of which NaN do not count.

    Squared below a fiftieth of the picture. Zero where no place is known.
    """
    known = tracks.isfinite()
    each = F.smooth_l1_loss(found.float(), tracks.float().nan_to_num(), beta=PLACE_BETA, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def balanced(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (b, n, classes) against (b, n): half its mean where there is something, half where there is none.

    Class 0 is "none"; a mean over all would be about that, as most of a picture is empty. ``IGNORED`` does not count.
    """
    each = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="none")
    something, nothing = targets.flatten() > 0, targets.flatten() == 0
    return sum((each * part).sum() / part.sum().clamp(min=1) for part in (something, nothing)) / 2


def glyphs(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of naming the characters under each patch: (b, n, slots, classes) against (b, n, slots)."""
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())


def linked(queries: Tensor, keys: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of several heads' attention against one token each.

    queries and keys (b, h, n, p), targets (b, h, n); ``IGNORED`` where a head may look anywhere. Zero when all are.
    """
    own = targets != IGNORED
    batch, head, _ = own.nonzero(as_tuple=True)
    scores = torch.einsum("ip,ijp->ij", queries[own].float(), keys[batch, head].float()) * queries.shape[-1] ** -0.5
    return F.cross_entropy(scores, targets[own], reduction="sum") / own.sum().clamp(min=1)


def pointed(queries: Tensor, keys: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of one head's causal attention against the place that each token is read from.

    queries and keys (b, n, p), targets (b, n): at a token the place of what it says, ``IGNORED`` where there is none.
    The query is that of the token before, which has to say it. Zero when every target is ignored.
    """
    n, wanted = queries.shape[1], targets[:, 1:]
    scores = queries[:, :-1].float() @ keys.float().mT * queries.shape[-1] ** -0.5
    future = torch.ones(n - 1, n, dtype=torch.bool, device=scores.device).triu(1)
    own = wanted != IGNORED
    scores = scores.masked_fill(future, -torch.inf)[own]
    return F.cross_entropy(scores, wanted[own], reduction="sum") / own.sum().clamp(min=1)

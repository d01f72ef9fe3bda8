"""What training asks of the prediction block: tokens further ahead than the next.

    x_1 .. x_n ── embed ──> context tower ──> h_1 .. h_n
    step 1   (x_{t+1}, h_t) ── block ──> g_t ── head ──> x_{t+2}
    step k   (x_{t+k}, g_t of an earlier step) ── block ──> g_t ── head ──> x_{t+k+1}

The weights of all steps are the same. As a part of training every step is a cross-entropy on the text itself; in
*boosting* the trunk stays as it is, and the block learns what the trunk says of each token rather than the token, with
the states that drafting will give it: of any earlier step. Source: ``reference`` language_family, section 2.7.
"""

import torch
from torch import Tensor, nn

from omni import losses
from omni.model import Omni
from omni.recipe import PredictPlan

Parts = dict[str, tuple[float, Tensor]]


class DraftLosses:
    """The block's objectives on the latest reading of the context tower, whose input and output it keeps."""

    def __init__(self, model: Omni, plan: PredictPlan | None) -> None:
        self.model, self.plan = model, plan
        self.called: tuple[Tensor, Tensor] | None = None
        if plan is not None:
            if model.mtp is None:
                raise ValueError(
                    "the recipe has predict, but its model has no block that predicts further tokens (mtp)"
                )
            model.context.register_forward_hook(self._keep)

    def _keep(self, tower: nn.Module, inputs: tuple, hidden: Tensor) -> None:
        self.called = inputs[0], hidden

    def parts(self, kind: str, labels: Tensor, segments: Tensor | None = None) -> Parts:
        """One loss for every step, by name. ``labels`` (b, n): the tokens themselves, IGNORED where none is learnt.

        ``segments`` (b, n) of packed texts: none is read on into the next.
        """
        if self.plan is None:
            return {}
        (embedded, hidden), self.called = self.called, None
        rows = max(1, round(self.plan.share * len(labels)))
        embedded, hidden, labels = (t[:rows] for t in (embedded, hidden, labels))
        segments = None if segments is None else segments[:rows]
        weight, found = self.plan.weight / self.plan.depth, {}
        ahead = range(1, min(self.plan.depth, labels.shape[1] - 2) + 1)
        for k, g in zip(ahead, self._steps(embedded, hidden, len(ahead), segments), strict=True):
            found[f"{kind}_ahead_{k}"] = weight, self._loss(g[:, :-1], hidden, _targets(labels, segments, k), k)
        return found

    def _steps(self, embedded: Tensor, hidden: Tensor, depth: int, segments: Tensor | None) -> list[Tensor]:
        """States (b, n - k, d) of the steps k = 1 .. depth."""
        states, n = [hidden], hidden.shape[1]
        for k in range(1, depth + 1):
            given = self._given(states, n - k)
            own = None if segments is None else segments[:, : n - k]
            states.append(self.model.mtp(embedded[:, k:], given, segments=own))
        return states[1:]

    def _given(self, states: list[Tensor], n: int) -> Tensor:
        """(b, n, d) for the next step: the latest state; in boosting that of any step before it, place by place."""
        if not self.plan.boost or len(states) < 3:
            return states[-1][:, :n]
        earlier = torch.stack([state[:, :n] for state in states[1:]])
        chosen = torch.randint(len(earlier), earlier.shape[1:3], device=earlier.device)
        return earlier.gather(0, chosen[None, ..., None].expand(1, *earlier.shape[1:]))[0]

    def _loss(self, g: Tensor, hidden: Tensor, targets: Tensor, k: int) -> Tensor:
        """Of states (b, m, d) whose tokens are ``targets`` (b, m); the trunk says those k places further on."""
        own = targets != losses.IGNORED
        logits = self.model.predict(g[own])
        if not self.plan.boost:
            return losses.tokens(logits[None], targets[own][None])
        with torch.no_grad():
            taught = self.model.predict(hidden[:, k:-1][own])
        return losses.forward_kl(logits, taught, own[own], self.plan.temperature)


def _targets(labels: Tensor, segments: Tensor | None, k: int) -> Tensor:
    """(b, n - k - 1): of every place the token that is k + 1 ahead, where it belongs to the same text."""
    targets = labels[:, k + 1 :]
    if segments is None:
        return targets
    return targets.masked_fill(segments[:, k + 1 :] != segments[:, : -k - 1], losses.IGNORED)

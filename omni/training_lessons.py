"""What a teacher says of every text that is learnt: the distillation of a model that was made smaller.

    inputs of a batch ──> teacher, frozen ──> distributions of the next token ──┐
                      └─> student ──> its own ─────────────────────────────────┴──> T^2 KL(teacher || student)
                      └─> one of the nested widths of the student ──> its own ─────> the same

The teacher reads the same ids and media with encoders of its own, since what a projector makes of them has the
context's width. Nested widths are parts of the student's weights, drawn step by step, which can be cut out afterwards.
Sources: ``reference`` generation_and_compression, B.1 (forward KL on logits alone) and B.3 (Model Optimizer's loss);
:mod:`omni.compress.elastic`.
"""

import torch
from torch import Tensor

from omni import losses
from omni.compress.elastic import Nested
from omni.config import ConfigError
from omni.families import load
from omni.inputs import Inputs
from omni.model import Omni
from omni.recipe_teach import TeachPlan

Parts = dict[str, tuple[float, Tensor]]


class Lessons:
    """The teacher of a run, which no checkpoint holds: it is read from its folder again."""

    def __init__(self, model: Omni, plan: TeachPlan | None) -> None:
        self.model, self.plan, self.teacher = model, plan, None
        self.nested = [Nested(model, sizes) for sizes in plan.nested] if plan else []
        if plan is None:
            return
        self.teacher = load(plan.teacher, device="cpu", dtype="float32").requires_grad_(False).eval()
        mine, theirs = model.config, self.teacher.config
        if mine.vocab_size != theirs.vocab_size or mine.special_tokens != theirs.special_tokens:
            raise ConfigError(
                f"the teacher {plan.teacher} has {theirs.vocab_size} tokens, special ones {theirs.special_tokens}; "
                f"the model has {mine.vocab_size}, {mine.special_tokens}: they must be the same"
            )

    def parts(self, kind: str, inputs: Inputs, hidden: Tensor, labels: Tensor) -> Parts:
        """Of the latest reading of ``inputs``, whose ``hidden`` (b, n, d) the student made; ``labels`` (b, n).

        One part for the student and, where the plan has nested widths, one for the width that is drawn in this step.
        """
        if self.teacher is None:
            return {}
        plan, taught = self.plan, self._taught(inputs)
        where = self._where(inputs, labels)
        found = {f"{kind}_taught": (plan.weight, self._loss(self.model.predict(hidden), taught, where))}
        if self.nested:
            drawn = self.nested[int(torch.randint(len(self.nested), ()))]
            logits = drawn(_logits, inputs)
            found[f"{kind}_taught_{drawn.name}"] = plan.weight, self._loss(logits, taught, where)
        return found

    @torch.no_grad()
    def _taught(self, inputs: Inputs) -> Tensor:
        if self.teacher.device != self.model.device:
            self.teacher.to(self.model.device)
        return _logits(self.teacher, inputs)

    def _loss(self, logits: Tensor, taught: Tensor, where: Tensor) -> Tensor:
        return losses.forward_kl(logits, taught, where, self.plan.temperature)

    def _where(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """(b, n) True where the next token is learnt, or, with ``everywhere``, is a real one."""
        ids, pad = inputs.input_ids, self.model.config.special_tokens.get("pad")
        wanted = ids != pad if self.plan.everywhere else labels != losses.IGNORED
        return torch.cat([wanted[:, 1:], torch.zeros_like(wanted[:, :1])], dim=1)


def _logits(model: Omni, inputs: Inputs) -> Tensor:
    """(b, n, v). Tokens of videos that were pruned are encoded by the model itself, and the same ones kept."""
    if not inputs.kept:
        return model.logits(inputs)
    seen = [
        tokens if kept is None else tokens[..., kept.flatten(), :]
        for tokens, kept in zip(model.see_all(inputs.pixels), inputs.kept, strict=True)
    ]
    return model.predict(model.read(inputs, seen=seen))

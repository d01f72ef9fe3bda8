"""Reasoning budget: closes the model's reasoning after so many tokens.

From ``budget`` tokens on, reasoning is closed at the next line break; from ``budget + grace`` on, at once. Closing
means that the tokens of the end sequence are forced, one after the other, whatever the model would have said; if it
had begun that sequence itself, only the rest is forced.
"""

from collections.abc import Callable, Sequence

MAX_BUDGET = 1 << 24
TAIL = 24  # tokens looked at for an end that the model wrote itself: enough for "</think>" in single bytes


class ReasoningBudget:
    """One row's state: whether it is inside reasoning, how many tokens that took, and what is still to be forced.

    The loop asks :meth:`force` before a token is drawn and tells :meth:`push` which one was taken.

    Args:
        budget: reasoning tokens after which to close.
        end: the ids that close reasoning.
        text_of: ids -> text with special tokens by name.
        opened: whether the prompt ends inside reasoning. If not, it starts when the model writes ``begin``.
        grace: tokens to wait for a line break; default a tenth of the budget, at least one.
    """

    def __init__(
        self,
        budget: int,
        end: Sequence[int],
        text_of: Callable[[list[int]], str],
        opened: bool = True,
        grace: int | None = None,
        begin: str = "<think>",
        closers: Sequence[str] = ("</think>", "<tool_call>", "<TOOLCALL>"),
    ) -> None:
        if not 0 <= budget <= MAX_BUDGET:
            raise ValueError(f"budget is {budget}; it must lie between 0 and {MAX_BUDGET}")
        if grace is not None and not 0 <= grace <= MAX_BUDGET:
            raise ValueError(f"grace is {grace}; it must lie between 0 and {MAX_BUDGET}")
        if not end:
            raise ValueError("the end sequence of the reasoning has no tokens")
        self.budget = budget
        self.grace = max(1, budget // 10) if grace is None else grace
        self.inside = opened
        self.count = 0
        self._end = list(end)
        self._text_of = text_of
        self._begin = begin
        self._closers = tuple(closers)
        self._tail: list[int] = []
        self._forced: list[int] = []
        if opened and budget == 0:
            self._close()

    def force(self) -> int | None:
        """The token that must come next, if one must."""
        return self._forced[0] if self._forced else None

    def push(self, token: int) -> None:
        """``token`` was taken."""
        self._tail = [*self._tail, token][-TAIL:]
        if self._forced:
            self._forced.pop(0)
            if not self._forced:
                self.inside, self._tail = False, []
        elif self.inside:
            self._push_inside(token)
        elif self._begin in self._text_of(self._tail):
            self.inside, self._tail = True, []
            if self.budget == 0:
                self._close()

    def _push_inside(self, token: int) -> None:
        text = self._text_of(self._tail)
        if any(closer in text for closer in self._closers):
            self.inside, self._tail = False, []
            return
        self.count += 1
        at_line_end = "\n" in self._text_of([token])
        if self.count >= self.budget + self.grace or (self.count >= self.budget and at_line_end):
            self._close()

    def _close(self) -> None:
        """Force the end, less what of it has just been written."""
        held = next(n for n in range(len(self._end), -1, -1) if self._tail[len(self._tail) - n :] == self._end[:n])
        self._forced = self._end[held:]
        if not self._forced:
            self.inside = False

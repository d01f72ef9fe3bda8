"""How one request is denoised: the checkpoint's defaults, with what the request says instead."""

from dataclasses import dataclass
from typing import Any

from omni.config import WalkConfig
from omni.decoders.flow import Guidance, check_walk
from omni.decoders.schedules import GRIDS, Schedule, fixed


@dataclass(frozen=True)
class Walk:
    """A checked way from noise to data."""

    steps: int
    guidance: Guidance
    shift: float
    eta: float
    solver: str
    grid: str
    levels: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        defaults: WalkConfig,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
        normalize: bool = False,
        shift: float | None = None,
        eta: float | None = None,
        solver: str | None = None,
        grid: str | None = None,
    ) -> "Walk":
        """``defaults`` with what is not None; ValueError for what cannot be walked."""
        grid = defaults.grid if grid is None else grid
        if grid not in GRIDS:
            raise ValueError(f"grid {grid!r} is unknown; known: {', '.join(GRIDS)}")
        if shift is None:
            shift = 1.0 if grid == "karras" else defaults.shift
        low, high = interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval is {tuple(interval)}; it must be 0 <= low <= high <= 1")
        scale = defaults.guidance if guidance is None else guidance
        found = cls(
            steps=(len(defaults.levels) or defaults.steps) if steps is None else steps,
            guidance=Guidance(scale, (low, high), normalize),
            shift=shift,
            eta=defaults.eta if eta is None else eta,
            solver=defaults.solver if solver is None else solver,
            grid=grid,
            levels=defaults.levels,
        )
        found._check()
        return found

    def _check(self) -> None:
        check_walk(self.solver, self.eta)
        if self.levels and self.steps != len(self.levels):
            raise ValueError(f"steps is {self.steps}; this student was distilled to {len(self.levels)} fixed ones")
        _ = self.schedule  # checks steps and shift

    @property
    def schedule(self) -> Schedule:
        return fixed(self.levels) if self.levels else GRIDS[self.grid](self.steps, self.shift)

    def settings(self) -> dict[str, Any]:
        """What makes the same walk again, as JSON types."""
        plain = {"steps": self.steps, "guidance": self.guidance.scale, "interval": list(self.guidance.interval)}
        plain |= {"shift": self.shift, "eta": self.eta, "solver": self.solver, "grid": self.grid}
        return plain | ({"normalize": True} if self.guidance.normalize else {})

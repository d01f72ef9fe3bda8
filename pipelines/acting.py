"""What policies and world models share: a video and the actions that lead through it, denoised together.

    picture or video ──> canvas of a tier ──> codec ──> latents without those of the padding ──┐
    actions, a state ──> the embodiment's normaliser ──> zeros up to the width ────────────────┴──> denoising steps
    instruction ──> caption ──> context tower, read once while it stays the same ──> cache ────────┘

    mode        given of the video    given of the actions    answered
    policy      first frame           state and history       actions and video
    forward     first frame           all                     video
    inverse     all                   none                    actions

Source: ``reference`` cosmos3, sections 6.2 to 6.5.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omni.config import Embodiment
from omni.pipelines.animate import Animator, Clips
from omni.pipelines.generation import MAX_TOKENS, OnStep, seeds_of
from omni.pipelines.walk import Walk
from omni.streams import ACTION, VIDEO, Scene
from omni.tokenizers import action as actions_of
from omni.tokenizers.canvas import Canvas, crop_latents, hold
from omni.tokenizers.captions import CaptionStyle
from omni.tokenizers.robots import Setting, setting_of, show, tell

POLICY, FORWARD, INVERSE = MODES = ("policy", "forward", "inverse")


class Actor(Animator):
    """``embodiment``: a name that the checkpoint, the user or the publication knows, or an :class:`Embodiment`."""

    shipped = "tiny-act"

    def __init__(
        self,
        model: Any,
        embodiment: str | Embodiment,
        *,
        chunk: int | None = None,
        fps: float | None = None,
        tier: int | None = None,
        viewpoint: str | None = None,
        layout: str | None = None,
        raw: bool = False,
        multiple: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        if model.actions is None:
            raise ValueError("this model denoises no actions")
        self.setting = setting_of(
            embodiment,
            model.config.action,
            self.defaults,
            self.unit,
            chunk=chunk,
            fps=fps,
            tier=tier,
            viewpoint=viewpoint,
            layout=layout,
            raw=raw,
            multiple=multiple,
        )

    @classmethod
    def from_pretrained(cls, name_or_path: str | None = None, embodiment: str | Embodiment = "pusht", **options: Any):
        """``name_or_path``: by default the shipped model. ``options``: device, dtype, and those of the class."""
        import omni

        loading = {name: options.pop(name) for name in ("device", "dtype") if name in options}
        return cls(omni.load(cls.name_of(name_or_path), **loading), embodiment, **options)

    @torch.inference_mode()
    def denoise_actions(
        self,
        mode: str,
        seen: Sequence[Tensor],
        prompts: Sequence[str],
        *,
        actions: Sequence[Any] | None = None,
        given: Sequence[Any] | None = None,
        foresee: bool = True,
        negative_prompt: str = "",
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        action_latents: Tensor | None = None,
        style: CaptionStyle | None = None,
        on_step: OnStep | None = None,
        title: str = "acting",
        **walk: Any,
    ) -> Clips:
        """Videos and actions of samples.

        Args:
            seen: frames (n, 3, H, W) of each; the last one is held where there are too few.
            actions: (n, a) of each that are given, in "forward".
            given: state and history (h, a) of each that stand before the actions, in "policy".
            foresee: False, in "policy": no video is denoised beside the actions, which takes less time. The model must
                have learnt that, as the shipped one has from first frames.
            latents, action_latents: (b, c, T, h, w) and (b, n, width) to start from instead of a seed.
        """
        own = self.defaults.world if foresee and self.defaults.world else self.defaults.action
        request = Walk.of(own, **walk)
        placed = [self._canvas(frames, mode) for frames in seen]
        if len({(c.height, c.width, c.content) for c in placed}) > 1:
            raise ValueError("the pictures of a batch must have one size")
        if not len(seen) == len(prompts):
            raise ValueError(f"{len(prompts)} instructions were given for {len(seen)} pictures or videos")
        before = 0 if given is None else len(given[0])
        if not isinstance(foresee, bool):
            raise ValueError(f"foresee is {foresee!r}; it must be True or False")
        if not foresee and mode != POLICY:
            raise ValueError(f"only a policy can do without the video; the mode is {mode!r}")
        shapes = self._action_shapes(placed[0], before, foresee)
        b, width = len(seen), self.setting.embodiment.width
        tokens = self.tokens({name: torch.empty(1, *shape, device="meta") for name, shape in shapes.items()})
        if tokens * b > MAX_TOKENS:
            raise ValueError(f"{b} samples take {tokens * b} tokens; at most {MAX_TOKENS} fit one call")
        need = latents is None or action_latents is None or request.eta > 0
        seeds = seeds_of(seed, b, 1, "samples") if need else [None] * b
        fresh = self.noise(seeds, shapes, [width] * b) if need else None
        state = fresh() if fresh is not None else {}
        for name, start in ((VIDEO, latents), (ACTION, action_latents)):
            if start is not None:
                state[name] = self._start(start, (b, *shapes[name]), name)
        clean = {VIDEO: self._see(mode, placed, state), ACTION: self._tell(mode, actions, given, state)}
        scene = Scene(
            fps=torch.full((b,), self.setting.fps, device=self.device),
            clean=clean,
            domains=torch.full((b,), self.setting.embodiment.domain, device=self.device),
            action_start=1 - before,
            widths=torch.full((b,), width, device=self.device),
        )
        wanted, against = self._instructions(prompts, negative_prompt, placed[0], self.style(style))
        found, complete = self.denoise(wanted, against, state, scene, request, fresh, on_step, title)
        names = ("fps", "chunk", "tier", "viewpoint", "raw")
        common = {"embodiment": self.setting.embodiment.name, "mode": mode, "foresee": foresee}
        common |= {name: getattr(self.setting, name) for name in names}
        settings = [
            {"prompt": p, **({} if s is None else {"seed": s}), **common, **request.settings()}
            for p, s in zip(prompts, seeds, strict=True)
        ]
        answered = None if mode == FORWARD else self._answer(found[ACTION][:, before:])
        return Clips(found[VIDEO], self.setting.fps, settings, None, answered, complete, self.codec, tiling=self.tiling)

    # -- what is seen --------------------------------------------------------------------------------------------------

    def _canvas(self, frames: Tensor, mode: str) -> Canvas:
        """The frames that are given, at the size of the model's world."""
        frames = hold(frames, self.setting.chunk + 1) if mode == INVERSE else frames[:1]
        return show(frames, self.setting, self.model.config.latent.image_size)

    def _action_shapes(self, placed: Canvas, before: int, foresee: bool) -> dict[str, tuple[int, ...]]:
        """Of the streams of one sample; latents of padding are left out, and those of what is not foreseen."""
        rows, columns = (max(side // self.codec.factor, 1) for side in placed.content)
        frames = self.codec.latent_frames(self.setting.chunk + 1 if foresee else 1)
        width = self.model.config.action.width
        return {VIDEO: (self.codec.channels, frames, rows, columns), ACTION: (before + self.setting.chunk, width)}

    def _see(self, mode: str, placed: Sequence[Canvas], state: dict[str, Tensor]) -> Tensor:
        """The latents that are given, put into the state; (b, T) True at them."""
        rows = [c.frames.to(self.device).movedim(0, 1)[None] for c in placed]
        encoded = torch.cat([self.codec.encode(row) for row in rows]).float()
        known = crop_latents(encoded, placed[0].content, self.codec.factor)
        flags = torch.zeros(state[VIDEO].shape[0], state[VIDEO].shape[2], dtype=torch.bool, device=self.device)
        flags[:, : known.shape[2]] = True
        state[VIDEO] = torch.cat([known, state[VIDEO][:, :, known.shape[2] :]], dim=2)
        return flags

    # -- what is done --------------------------------------------------------------------------------------------------

    def _tell(self, mode: str, actions: Any, given: Any, state: dict[str, Tensor]) -> Tensor:
        """The actions that are given, put into the state; (b, n) True at them."""
        start = state[ACTION]
        flags = torch.zeros(start.shape[:2], dtype=torch.bool, device=start.device)
        rows = given if mode == POLICY else None
        if mode == FORWARD:
            if actions is None or len(actions) != len(start):
                raise ValueError("forward dynamics needs the actions of each sample")
            rows = [actions_of.chunk(one, self.setting.chunk) for one in actions]
        if rows is not None:
            known = torch.stack([self._encode(row) for row in rows]).to(start)
            flags[:, : known.shape[1]] = True
            state[ACTION] = torch.cat([known, start[:, known.shape[1] :]], dim=1)
        return flags

    def _encode(self, rows: Any) -> Tensor:
        width, own = self.model.config.action.width, self.setting.embodiment
        if not self.setting.raw:
            return actions_of.encode(rows, own, width)
        found = torch.as_tensor(rows)
        if found.shape[-1] != own.width:
            raise ValueError(f"actions have {found.shape[-1]} numbers; those of {own.name!r} have {own.width}")
        return actions_of.pad(found, width)

    def _answer(self, found: Tensor) -> Tensor:
        """(b, n, a) in the embodiment's own units."""
        own = self.setting.embodiment
        found = found.float().cpu()
        return actions_of.unpad(found, own.width) if self.setting.raw else actions_of.decode(found, own)

    # -- what is said --------------------------------------------------------------------------------------------------

    def _instructions(
        self, prompts: Sequence[str], negative: str, placed: Canvas, style: CaptionStyle
    ) -> tuple[list, list]:
        """Ids of the instructions and of what guidance leads away from, which is said as it stands."""
        if not all(isinstance(p, str) for p in (*prompts, negative)):
            raise ValueError("instructions are texts")
        size = placed.height, placed.width
        texts = [tell(p, self.setting, size, self.defaults.captions) for p in prompts]
        wanted = [self.ids(text, "video", style) for text in texts]
        return wanted, [self.ids(negative, "video", style)] * len(texts)


__all__ = ["FORWARD", "INVERSE", "MODES", "POLICY", "Actor", "Setting"]

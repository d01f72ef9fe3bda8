"""Mamba-2 mixer: projection, short convolution, selective scan, gated norm, projection.

    z, xBC, dt = in_proj(u)
    x, B, C    = silu(conv(xBC))
    S_t        = exp(dt A) S_{t-1} + dt x_t B_t'        y_t = S_t C_t + D x_t
    out        = out_proj(rms_groups(y * silu(z)))

Source: Dao and Gu, arXiv 2405.21060; sizes and orders as in the Nemotron-H checkpoints.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.cache import Fed, MambaSlot
from omni.config import MambaConfig
from omni.kernels.conv import causal_conv, conv_step
from omni.kernels.scan import scan, scan_advance, scan_states, scan_step
from omni.layers import GatedRMSNorm, Linear, wide
from omni.mixers.layout import Layout

LANES = 16
"""Numbers of float32 in the widest register of a processor."""


class Mamba(nn.Module):
    """(b, n, d) -> (b, n, d), causal. Given a ``context`` slot the scan starts from its states and changes neither."""

    def __init__(self, d_model: int, config: MambaConfig) -> None:
        super().__init__()
        c = self.config = config
        self.in_proj = Linear(d_model, c.d_in_proj, bias=c.bias)
        self.conv1d = nn.Conv1d(c.conv_dim, c.conv_dim, c.d_conv, groups=c.conv_dim, bias=c.conv_bias)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, c.n_heads + 1, dtype=torch.float32)))
        self.D = nn.Parameter(torch.ones(c.n_heads))
        self.dt_bias = nn.Parameter(_initial_dt_bias(c))
        self.norm = GatedRMSNorm(c.d_inner, c.n_groups, c.norm_eps)
        self.out_proj = Linear(c.d_inner, d_model, bias=c.bias)

    def forward(
        self, u: Tensor, layout: Layout, slot: MambaSlot | None = None, context: MambaSlot | None = None
    ) -> Tensor:
        c = self.config
        z, xbc, dt = self.in_proj(u).split([c.d_inner, c.conv_dim, c.n_heads], dim=-1)
        dt = self._step_size(dt, layout)
        if slot is not None and layout.recording:
            slot.window.append(Fed(xbc, dt, self._advance, self._states_at))
        if slot is not None and layout.recording and slot.snapshots is not None:
            y = self._one_by_one(xbc, dt, slot)
        elif slot is not None and layout.n == 1 and layout.lengths is None and not torch.is_grad_enabled():
            y = self._one(xbc[:, 0], dt[:, 0], slot)[:, None]
        elif layout.groups is not None:
            passes = zip(layout.groups.each(xbc, 1), layout.groups.each(dt, 1), strict=True)
            y = layout.groups.join((self._many(*both, layout, slot, context) for both in passes), 1)
        else:
            y = self._many(xbc, dt, layout, slot, context)
        return self.out_proj(self.norm(y, z))

    def _step_size(self, dt: Tensor, layout: Layout) -> Tensor:
        """softplus(dt + bias), clamped; zero at padding, where the state must neither decay nor take anything in."""
        low, high = self.config.dt_limit
        w = wide(dt.dtype)
        dt = F.softplus(dt.to(w) + self.dt_bias.to(w))
        if low > 0 or math.isfinite(high):
            dt = dt.clamp(low, high)
        return dt if layout.padding is None else dt.masked_fill(layout.padding[..., None], 0.0)

    def _many(
        self, xbc: Tensor, dt: Tensor, layout: Layout, slot: MambaSlot | None, context: MambaSlot | None
    ) -> Tensor:
        seed = slot if slot is not None else context
        conv, ssm = (seed.conv, seed.state()) if seed is not None else (None, None)
        weight, bias = self.conv1d.weight[:, 0], self.conv1d.bias
        mixed = causal_conv(xbc, weight, bias, initial=conv, segments=layout.segments)
        x, B, C = self._split(mixed)
        # A block shorter than a chunk is one chunk: seeded states and long chunks do not mix well in every kernel.
        chunk = min(self.config.chunk_size, xbc.shape[1])
        y, state = scan(
            x,
            dt,
            self._a(dt.dtype),
            B,
            C,
            self.D.to(dt.dtype),
            initial_state=ssm,
            chunk_size=chunk,
            segments=layout.segments,
        )
        if slot is not None:
            slot.conv = self._last_inputs(xbc, conv, layout)
            slot.keep(state, layout.n if layout.lengths is None else layout.lengths)
        return y.flatten(2)

    def _one(self, xbc: Tensor, dt: Tensor, slot: MambaSlot) -> Tensor:
        """One token, states advanced in place. (b, c), (b, h) -> (b, h p)"""
        mixed = conv_step(xbc, self.conv1d.weight[:, 0], self.conv1d.bias, slot.conv)
        x, B, C = self._split(mixed)
        y, state = scan_step(x, dt, self._a(dt.dtype), B, C, self.D.to(dt.dtype), slot.state())
        slot.keep(state, 1)
        return y.flatten(1)

    def _one_by_one(self, xbc: Tensor, dt: Tensor, slot: MambaSlot) -> Tensor:
        """Many tokens, with a snapshot of the states behind each. (b, n, c), (b, n, h) -> (b, n, h p)"""
        found = []
        for i in range(xbc.shape[1]):
            found.append(self._one(xbc[:, i], dt[:, i], slot))
            slot.snapshot()
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def _advance(self, xbc: Tensor, dt: Tensor, slot: MambaSlot, counts: Tensor | None) -> None:
        """Many tokens, of which only the states are wanted; used to replay what was accepted.

        Bit by bit what :meth:`_one` leaves. Each row goes ``counts`` (b,) tokens further; None: all.
        """
        (b, n, c), taps = xbc.shape, self.config.d_conv - 1
        history = torch.cat([slot.conv.to(xbc.dtype), xbc], dim=1)
        windows = history.unfold(1, taps, 1)[:, :n].mT  # (b, n, w - 1, c)
        tokens = n if c % LANES == 0 else 1  # a processor rounds what fills no whole register in another way
        parts = zip(xbc.split(tokens, dim=1), windows.split(tokens, dim=1), strict=True)
        mixed = torch.cat([self._mixed(*part) for part in parts], dim=1)
        x, B, _ = self._split(mixed)
        state = scan_advance(x, dt, self._a(dt.dtype), B, slot.state(), counts)
        columns = torch.arange(taps, device=xbc.device) + (n if counts is None else counts[:, None])
        columns = columns.expand(b, taps)[..., None].expand(-1, -1, c)
        slot.conv = history.gather(1, columns).to(slot.conv.dtype)
        slot.keep(state, n if counts is None else counts)

    def _mixed(self, xbc: Tensor, windows: Tensor) -> Tensor:
        """Tokens (b, n, c), each behind its own window (b, n, w - 1, c), as :meth:`_one` mixes one."""
        own = windows.flatten(0, 1).clone()  # it is shifted in place
        return conv_step(xbc.flatten(0, 1), self.conv1d.weight[:, 0], self.conv1d.bias, own).view(xbc.shape)

    def _states_at(
        self, xbc: Tensor, dt: Tensor, conv: Tensor, ssm: Tensor, rows: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States of ``rows`` (k,) behind their first ``counts`` tokens of what was fed from ``conv`` and ``ssm`` on."""
        mixed = causal_conv(xbc, self.conv1d.weight[:, 0], self.conv1d.bias, initial=conv)
        x, B, _ = self._split(mixed)
        at = {"rows": rows, "counts": counts, "initial_state": ssm, "chunk_size": self.config.chunk_size}
        columns = counts[:, None] + torch.arange(self.config.d_conv - 1, device=xbc.device)
        history = torch.cat([conv.to(xbc.dtype), xbc], dim=1)
        return history[rows[:, None], columns], scan_states(x, dt, self._a(dt.dtype), B, **at)

    def _split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., c) -> x (..., h, p), B and C (..., g, s)"""
        c = self.config
        x, B, C = mixed.split([c.d_inner, c.n_groups * c.d_state, c.n_groups * c.d_state], dim=-1)
        lead = mixed.shape[:-1]  # views by hand: unflatten takes as long as a small product
        x = x.view(*lead, c.n_heads, c.head_dim)
        return x, B.view(*lead, c.n_groups, c.d_state), C.view(*lead, c.n_groups, c.d_state)

    def _a(self, dtype: torch.dtype) -> Tensor:
        return -torch.exp(self.A_log.to(dtype))

    def _last_inputs(self, xbc: Tensor, conv: Tensor, layout: Layout) -> Tensor:
        """(b, d_conv - 1, c): the convolution's inputs before the next token, skipping right padding."""
        taps = self.config.d_conv - 1
        if layout.lengths is None and xbc.shape[1] >= taps:
            return xbc[:, xbc.shape[1] - taps :].clone()
        history = torch.cat([conv.to(xbc.dtype), xbc], dim=1)
        if layout.lengths is None:
            return history[:, history.shape[1] - taps :].clone()
        columns = layout.lengths[:, None] + torch.arange(taps, device=xbc.device)
        return history.gather(1, columns[..., None].expand(-1, -1, xbc.shape[2]))


def _initial_dt_bias(config: MambaConfig) -> Tensor:
    """Inverse softplus of log-uniform steps in ``dt_init``."""
    low, high = (math.log(limit) for limit in config.dt_init)
    dt = torch.exp(torch.rand(config.n_heads) * (high - low) + low).clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))

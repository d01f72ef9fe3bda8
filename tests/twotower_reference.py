"""TwoTower written out from its formulas, token by token, over the published names; slow, and in float64.

Sources: arXiv 2606.26493, 2405.21060 (Mamba-2), 2412.19437 (router). Nothing here knows the library.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


class Reference:
    """``plain``: config.json; ``state``: tensors by their published names."""

    def __init__(self, plain: dict, state: dict[str, Tensor]) -> None:
        self.c = plain
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.pattern = plain["hybrid_override_pattern"]

    def w(self, tower: str, layer: int, name: str) -> Tensor:
        return self.state[f"{tower}_tower.layers.{layer}.{name}"]

    # -- layers, of one sequence: x (n, d)

    def mamba(self, tower: str, i: int, u: Tensor, memory: dict) -> Tensor:
        """One token after the other from the states in ``memory``, which are moved on."""
        c = self.c
        heads, p, s, g = c["mamba_num_heads"], c["mamba_head_dim"], c["ssm_state_size"], c["n_groups"]
        inner, out = heads * p, []
        weight, bias = self.w(tower, i, "mixer.conv1d.weight")[:, 0], self.w(tower, i, "mixer.conv1d.bias")
        taps = weight.shape[1]
        columns = memory.setdefault(("conv", i), torch.zeros(taps - 1, len(weight), dtype=u.dtype))
        state = memory.setdefault(("ssm", i), torch.zeros(heads, p, s, dtype=u.dtype))
        decay = -self.w(tower, i, "mixer.A_log").exp()
        for token in u:
            mixed = self.w(tower, i, "mixer.in_proj.weight") @ token
            z, xbc, dt = mixed.split([inner, inner + 2 * g * s, heads])
            window = torch.cat([columns, xbc[None]])
            columns = window[1:]
            xbc = F.silu((window * weight.T).sum(0) + bias)
            x, B, C = xbc.split([inner, g * s, g * s])
            x, B, C = x.view(heads, p), B.view(g, s), C.view(g, s)
            dt = F.softplus(dt + self.w(tower, i, "mixer.dt_bias"))
            y, new = [], torch.empty_like(state)
            for h in range(heads):
                group = h // (heads // g)
                new[h] = (dt[h] * decay[h]).exp() * state[h] + dt[h] * torch.outer(x[h], B[group])
                y.append(new[h] @ C[group] + self.w(tower, i, "mixer.D")[h] * x[h])
            state = new
            gated = (torch.cat(y) * F.silu(z)).view(g, -1)
            gated = rms(gated, self.w(tower, i, "mixer.norm.weight").view(g, -1), c["layer_norm_epsilon"]).flatten()
            out.append(self.w(tower, i, "mixer.out_proj.weight") @ gated)
        memory["conv", i], memory["ssm", i] = columns, state
        return torch.stack(out)

    def attention(self, tower: str, i: int, u: Tensor, past: tuple[Tensor, Tensor] | None, causal: bool):
        """Explicit softmax over the keys before and the own ones; also returns all keys and values."""
        c = self.c
        heads, kv, p = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        q, k, v = (u @ self.w(tower, i, f"mixer.{x}_proj.weight").T for x in "qkv")
        q, k, v = q.view(-1, heads, p), k.view(-1, kv, p), v.view(-1, kv, p)
        before = 0 if past is None else len(past[0])
        if past is not None:
            k, v = torch.cat([past[0], k]), torch.cat([past[1], v])
        out = torch.empty(len(u), heads, p, dtype=u.dtype)
        for n in range(len(u)):
            seen = before + n + 1 if causal else len(k)
            for h in range(heads):
                own = h // (heads // kv)
                scores = k[:seen, own] @ q[n, h] / math.sqrt(p)
                out[n, h] = scores.softmax(0) @ v[:seen, own]
        return out.flatten(1) @ self.w(tower, i, "mixer.o_proj.weight").T, (k, v)

    def experts(self, tower: str, i: int, u: Tensor) -> Tensor:
        c, out = self.c, []
        for token in u:
            scores = (self.w(tower, i, "mixer.gate.weight") @ token).sigmoid()
            chosen = (scores + self.w(tower, i, "mixer.gate.e_score_correction_bias")).topk(c["num_experts_per_tok"])
            weights = scores[chosen.indices] / scores[chosen.indices].sum() * c["routed_scaling_factor"]
            total = self.mlp(tower, i, "mixer.shared_experts", token)
            for e, weight in zip(chosen.indices.tolist(), weights, strict=True):
                total = total + weight * self.mlp(tower, i, f"mixer.experts.{e}", token)
            out.append(total)
        return torch.stack(out)

    def mlp(self, tower: str, i: int, name: str, token: Tensor) -> Tensor:
        up = self.w(tower, i, f"{name}.up_proj.weight") @ token
        return self.w(tower, i, f"{name}.down_proj.weight") @ up.relu().square()

    # -- towers

    def read(self, ids: Tensor, memory: dict) -> Tensor:
        """The context tower: logits (n, v) of the next tokens; ``memory`` goes on."""
        x, eps = self.state["context_tower.embeddings.weight"][ids], self.c["layer_norm_epsilon"]
        for i, letter in enumerate(self.pattern):
            u = rms(x, self.w("context", i, "norm.weight"), eps)
            if letter == "M":
                u = self.mamba("context", i, u, memory)
            elif letter == "*":
                u, memory["kv", i] = self.attention("context", i, u, memory.get(("kv", i)), causal=True)
            else:
                u = self.experts("context", i, u)
            x = x + u
        x = rms(x, self.state["context_tower.norm_f.weight"], eps)
        return x @ self.state["context_lm_head.weight"].T

    def denoise(self, block: Tensor, t: float, memory: dict) -> Tensor:
        """Logits (S, v) of a block; ``memory`` is only read."""
        x, eps = self.state["denoiser_tower.embeddings.weight"][block], self.c["layer_norm_epsilon"]
        shared = self.time(t)
        for i, letter in enumerate(self.pattern):
            shift, scale, gate = shared + self.state[f"scale_shift_tables.{i}"]
            weight = self.w("denoiser", i, "norm.weight")
            if letter in "M*":
                u = rms(x * (1 + scale) + shift, weight, eps)
            else:
                u = rms(x, weight, eps) * (1 + scale) + shift
            if letter == "M":
                u = self.mamba("denoiser", i, u, dict(memory))
            elif letter == "*":
                u, _ = self.attention("denoiser", i, u, memory["kv", i], causal=False)
            else:
                u = self.experts("denoiser", i, u)
            x = x + gate * u
        x = rms(x, self.state["denoiser_tower.norm_f.weight"], eps)
        return x @ self.state["lm_head.weight"].T

    def time(self, t: float) -> Tensor:
        """(3, d). The angles are float32, as published: a thousand radians are rounded noticeably there."""
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float32) / 128)
        angles = torch.tensor(t, dtype=torch.float32) * 1000 * frequencies
        x, s = torch.cat([angles.cos(), angles.sin()]).double(), self.state
        x = s["t_embedder.mlp.0.weight"] @ x + s["t_embedder.mlp.0.bias"]
        x = s["t_embedder.mlp.2.weight"] @ F.silu(x) + s["t_embedder.mlp.2.bias"]
        return (s["t_block.1.weight"] @ F.silu(x) + s["t_block.1.bias"]).view(3, -1)

    # -- the published loop

    def generate(self, prompts: Tensor, blocks: int, size: int, steps: int, threshold: float, mask: int):
        """Greedy: the tokens (b, blocks * size), and how many passes they took."""
        memories = [{} for _ in prompts]
        for prompt, memory in zip(prompts, memories, strict=True):
            self.read(prompt, memory)
        said, nfe = [[] for _ in prompts], 0
        for _ in range(blocks):
            x = torch.full((len(prompts), size), mask)
            for step in range(steps):
                masked = x == mask
                if not masked.any():
                    break
                t, out, nfe = float(masked.double().mean()), x.clone(), nfe + 1
                for b, memory in enumerate(memories):
                    logits = self.denoise(x[b], t, memory)
                    logits[:, mask] = -1e12
                    p, best = logits.softmax(-1).max(-1)
                    m = int(masked[b].sum())
                    above = int(((p > threshold) & masked[b]).sum())
                    count = m if step == steps - 1 else min(m, max(1, above, math.ceil(m / (steps - step))))
                    open_ = [int(i) for i in masked[b].nonzero()[:, 0]]
                    for i in sorted(open_, key=lambda i: -float(p[i]))[:count]:
                        out[b, i] = best[i]
                x = out
            for b, memory in enumerate(memories):
                self.read(x[b], memory)
                said[b] += x[b].tolist()
        return said, nfe

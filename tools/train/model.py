"""DeepSeek-V3 in small: MLA with q-LoRA, sigmoid noaux_tc routing, a shared expert, one MTP layer. For training on CPU or GPU.

Parameters are kept in bfloat16 for the matrix units; the optimiser holds float32 masters. Rotary pairs are neighbours, as
in DeepSeek's checkpoints.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = dict(
    vocab_size=4096, hidden_size=256, num_hidden_layers=6, first_k_dense_replace=1, intermediate_size=768,
    moe_intermediate_size=128, n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2, n_shared_experts=1,
    routed_scaling_factor=2.5, num_attention_heads=4, q_lora_rank=192, kv_lora_rank=128, qk_nope_head_dim=64,
    qk_rope_head_dim=32, v_head_dim=64, rope_theta=10000.0, max_position_embeddings=1024, rms_norm_eps=1e-6)

FILL = 128


class GroupedLinear(torch.autograd.Function):
    """Rows sorted by group times that group's matrix: [R, in], [E, out, in], row counts -> [R, out]."""

    @staticmethod
    def forward(ctx, x, w, counts):
        ctx.save_for_backward(x, w)
        ctx.counts = counts
        y = x.new_empty(x.shape[0], w.shape[1])
        start = 0
        for e, n in enumerate(counts):
            torch.mm(x[start:start + n], w[e].t(), out=y[start:start + n])
            start += n
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dx, dw = torch.empty_like(x), torch.empty_like(w)
        start = 0
        for e, n in enumerate(ctx.counts):
            rows = slice(start, start + n)
            torch.mm(dy[rows], w[e], out=dx[rows])
            torch.mm(dy[rows].t(), x[rows], out=dw[e])
            start += n
        return dx, dw, None


class Spread(torch.autograd.Function):
    """[N, D] -> [rows, D], row r being token source[r]; slot[j] is where choice j of the N*k choices went."""

    @staticmethod
    def forward(ctx, x, source, slot, k):
        ctx.slot, ctx.k = slot, k
        return x[source]

    @staticmethod
    def backward(ctx, dy):
        return dy[ctx.slot].view(-1, ctx.k, dy.shape[1]).sum(1), None, None, None


class Collect(torch.autograd.Function):
    """The way back: [rows, D] -> [N*k, D]. Filling rows get no gradient."""

    @staticmethod
    def forward(ctx, x, slot):
        ctx.slot, ctx.rows = slot, x.shape[0]
        return x[slot]

    @staticmethod
    def backward(ctx, dy):
        return dy.new_zeros(ctx.rows, dy.shape[1]).index_copy_(0, ctx.slot, dy), None


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def matrix(rows, cols, scale=1.0):
    return nn.Parameter(torch.randn(rows, cols) * scale / math.sqrt(cols))


class Linear(nn.Module):
    def __init__(self, cols, rows, scale=0.7):
        super().__init__()
        self.weight = matrix(rows, cols, scale)

    def forward(self, x):
        return F.linear(x, self.weight)


def rotate(x, cos, sin):
    """x [..., T, rope] with neighbouring pairs."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        heads = c["num_attention_heads"]
        self.qk = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
        self.q_a_proj = Linear(c["hidden_size"], c["q_lora_rank"])
        self.q_a_layernorm = Norm(c["q_lora_rank"], 1e-6)
        self.q_b_proj = Linear(c["q_lora_rank"], heads * self.qk)
        self.kv_a_proj_with_mqa = Linear(c["hidden_size"], c["kv_lora_rank"] + c["qk_rope_head_dim"])
        self.kv_a_layernorm = Norm(c["kv_lora_rank"], 1e-6)
        self.kv_b_proj = Linear(c["kv_lora_rank"], heads * (c["qk_nope_head_dim"] + c["v_head_dim"]))
        self.o_proj = Linear(heads * c["v_head_dim"], c["hidden_size"], 0.2)

    def forward(self, x, cos, sin, mask=None, cache=None):
        c, (b, t, _) = self.c, x.shape
        nope, rope, heads = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["num_attention_heads"]
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(b, t, heads, self.qk).transpose(1, 2)
        latent, k_pe = self.kv_a_proj_with_mqa(x).split((c["kv_lora_rank"], rope), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(b, t, heads, -1).transpose(1, 2)
        k_pe = rotate(k_pe, cos, sin)[:, None].expand(b, heads, t, rope)
        q = torch.cat((q[..., :nope], rotate(q[..., nope:], cos, sin)), -1)
        k, v = torch.cat((kv[..., :nope], k_pe), -1), kv[..., nope:]
        if cache is not None:
            if cache:
                k, v = torch.cat((cache["k"], k), 2), torch.cat((cache["v"], v), 2)
            cache["k"], cache["v"] = k, v
        if mask is not None and t <= 256:  # short rows: written out is the fastest on a CPU
            out = (q @ k.mT * self.qk ** -0.5 + mask).softmax(-1) @ v
        else:  # the fused kernel wants one width; zeros change nothing
            width = v.shape[-1]
            out = F.scaled_dot_product_attention(q, k, F.pad(v, (0, self.qk - width)), attn_mask=mask,
                                                 is_causal=mask is None and t > 1, scale=self.qk ** -0.5)[..., :width]
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.gate_up_proj = Linear(hidden, 2 * inner)  # split on export
        self.down_proj = Linear(inner, hidden, 0.2)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Moe(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        e, d, inner = c["n_routed_experts"], c["hidden_size"], c["moe_intermediate_size"]
        self.gate = Linear(d, e, 0.5)
        self.gate_up = nn.Parameter(torch.randn(e, 2 * inner, d) * 0.7 / math.sqrt(d))
        self.down = nn.Parameter(torch.randn(e, d, inner) * 0.2 / math.sqrt(inner))
        self.shared_experts = Mlp(d, inner * c["n_shared_experts"])
        self.register_buffer("bias", torch.zeros(e))
        self.register_buffer("load", torch.zeros(e), persistent=False)  # tokens seen by each expert since the last update

    def route(self, x):
        c, n = self.c, x.shape[0]
        s = torch.sigmoid(F.linear(x.float(), self.gate.weight.float()))
        with torch.no_grad():
            biased = s + self.bias
            groups = biased.view(n, c["n_group"], -1)
            best = groups.topk(2, -1).values.sum(-1).topk(c["topk_group"], -1).indices
            keep = torch.zeros_like(groups[..., 0]).scatter_(1, best, 1.0)
            chosen = groups.masked_fill(keep[..., None] == 0, -math.inf).view(n, -1).topk(c["num_experts_per_tok"], -1).indices
        w = s.gather(1, chosen)
        return chosen, w / (w.sum(-1, keepdim=True) + 1e-20) * c["routed_scaling_factor"]

    def forward(self, x):
        shape, k = x.shape, self.c["num_experts_per_tok"]
        x = x.reshape(-1, shape[-1])
        chosen, w = self.route(x)
        # Rows sorted by expert, each expert's filled up to a multiple of FILL: few distinct shapes, so that the CPU
        # library finds its compiled kernels again.
        flat = chosen.flatten()
        order = flat.argsort()
        counts = torch.bincount(flat, minlength=self.c["n_routed_experts"])
        if self.training:
            self.load += counts
        filled = (counts + FILL - 1) // FILL * FILL
        shift = (filled - counts).cumsum(0) - (filled - counts)
        place = torch.arange(flat.numel(), device=x.device) + shift[flat[order]]
        slot = torch.empty_like(order)
        slot[order] = place
        filled = filled.tolist()
        source = place.new_zeros(sum(filled))
        source[place] = order // k
        gate, up = GroupedLinear.apply(Spread.apply(x, source, slot, k), self.gate_up, filled).chunk(2, -1)
        y = Collect.apply(GroupedLinear.apply(F.silu(gate) * up, self.down, filled), slot)
        y = torch.bmm(w.to(y.dtype)[:, None], y.view(-1, k, shape[-1]))[:, 0]
        return (y + self.shared_experts(x)).view(shape)

    @torch.no_grad()
    def balance(self, speed):
        """Loss-free balancing: a busy expert's bias goes down, an idle one's up."""
        self.bias += speed * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


def token_losses(logits, target):
    return F.cross_entropy(logits.float(), target, reduction="none")


class Block(nn.Module):
    def __init__(self, c, dense):
        super().__init__()
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = Mlp(c["hidden_size"], c["intermediate_size"]) if dense else Moe(c)

    def forward(self, x, cos, sin, mask=None, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


def compile_parts():
    """Fuses the small operations; call before the first use."""
    global token_losses
    token_losses = torch.compile(token_losses, dynamic=True)
    for part in (Attention, Norm, Mlp):
        part.forward = torch.compile(part.forward, dynamic=True)


def bf16(model):
    """Parameters to bfloat16; routing biases and rotary tables stay float32."""
    for p in model.parameters():
        p.data = p.data.bfloat16()
    return model


class Model(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.c = c
        d, eps = c["hidden_size"], c["rms_norm_eps"]
        self.embed_tokens = nn.Parameter(torch.randn(c["vocab_size"], d) * 0.05)
        self.layers = nn.ModuleList(Block(c, i < c["first_k_dense_replace"]) for i in range(c["num_hidden_layers"]))
        self.norm = Norm(d, eps)
        self.head = matrix(c["vocab_size"], d, 0.3)
        # the MTP layer: position t sees the hidden state of t and the token t+1, and predicts token t+2
        self.enorm, self.hnorm = Norm(d, eps), Norm(d, eps)
        self.eh_proj = Linear(2 * d, d)
        self.mtp = Block(c, False)
        self.mtp_norm = Norm(d, eps)
        rope = c["qk_rope_head_dim"]
        angle = torch.outer(torch.arange(c["max_position_embeddings"]).float(),
                            c["rope_theta"] ** (-torch.arange(0, rope, 2).float() / rope))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def moes(self):
        return [m for m in self.modules() if isinstance(m, Moe)]

    def rope(self, start, t, dtype):
        return self.cos[start:start + t].to(dtype), self.sin[start:start + t].to(dtype)

    def hidden(self, ids, mask=None, caches=None):
        """The state after the final norm. caches: one dict a layer, kept between calls."""
        x = F.embedding(ids, self.embed_tokens)
        start = caches[0]["k"].shape[2] if caches and caches[0] else 0
        cos, sin = self.rope(start, ids.shape[1], x.dtype)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, None if caches is None else caches[i])
        return self.norm(x)

    def mtp_hidden(self, hidden, next_ids, mask=None):
        e = F.embedding(next_ids, self.embed_tokens)
        x = self.eh_proj(torch.cat((self.enorm(e), self.hnorm(hidden)), -1))
        return self.mtp_norm(self.mtp(x, *self.rope(0, x.shape[1], x.dtype), mask))

    def logits(self, hidden):
        return F.linear(hidden, self.head)

    def losses(self, ids, wanted, mask=None, mtp=True):
        """For next-token and for MTP prediction: the losses of the wanted tokens of ids [B, T], and the rows they are in.

        Without mtp the second ones are empty."""
        mask = None if mask is None else mask.to(self.head.dtype)
        h = self.hidden(ids[:, :-1], mask)
        states = [(h, 1)]
        if mtp:
            states.append((self.mtp_hidden(h, ids[:, 1:], mask), 2))  # its last position has no token to predict
        out = []
        for state, ahead in states:
            at = F.pad(wanted[:, ahead:], (0, ahead - 1)).flatten().nonzero()[:, 0]
            n = at.numel()
            at = F.pad(at, (0, -n % 256))  # few distinct shapes, as above
            target = F.pad(ids[:, ahead:], (0, ahead - 1)).flatten()[at]
            out.append((token_losses(self.logits(state.flatten(0, 1)[at]), target)[:n], at[:n] // state.shape[1]))
        return out if mtp else out + [(h.new_zeros(0), at[:0])]

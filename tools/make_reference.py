#!/usr/bin/env python3
"""Records what transformers computes for a DeepSeek checkpoint, for `exo verify MODEL --reference FILE`.

    tools/make_reference.py FOLDER [--out FILE] [--prompt TEXT]... [--tokens FILE.json]... [--greedy N] [--layers all]

FOLDER: a Hugging Face checkpoint (deepseek_v2, deepseek_v3, kimi_k2; bf16 or FP8). It is run on the CPU in float32,
layer by layer (layered_model.py), so that a model of 671 billion parameters needs some 3 GB of memory and time.
Without --prompt and --tokens: one prompt of a few words where there is a tokenizer.json, else 24 ids of a fixed seed.
Prompts are called p0, p1, ...; FILE is safetensors, F32 and I32, with these tensors:

    P.input_ids [S], P.logits [S, V]                 every prompt
    P.embed, P.final_norm [S, D]
    P.layers.I.out, .self_attn.out, .mlp.out [S, D]  every layer
    P.layers.I.mlp.gate.topk_idx, .topk_weight       [S, K], sorted by expert
    P.layers.I.*                                     the inner tensors of the first dense, first MoE and last layer, or
                                                     of all with --layers all
    P.greedy.ids [N], P.greedy.logits [N, V]         with --greedy N: each costs one more pass over the weights
    rope.inv_freq, rope.cos_sin_scale, rope.softmax_scale

MTP layers are left out: transformers' model doesn't run them. Needs: pip install torch transformers safetensors
tokenizers.
"""
import argparse
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

from layered_model import LayeredModel, read_tokenizer

DEFAULT_PROMPT = "The old king had three sons, and the youngest said: 12 + 30 = 42."
N_RANDOM_IDS, SEED = 24, 1


class Tap:
    """Hooks of one layer: writes down what its modules give, for the sequence that is going through."""

    def __init__(self, model, index, layer, names, full, out):
        self.model, self.index, self.names, self.full, self.out = model, index, names, full, out
        self.sequence, self.handles = 0, []
        attention, mlp, c = layer.self_attn, layer.mlp, model.config
        self._output(attention, "self_attn.out")
        self._output(mlp, "mlp.out")
        self._output(layer, "out")
        if hasattr(mlp, "gate"):
            self.handles.append(mlp.gate.register_forward_hook(self._gate))
        if not full:
            return
        self._output(layer.input_layernorm, "input_layernorm")
        self._input(layer.post_attention_layernorm, "attn_residual")
        self._output(layer.post_attention_layernorm, "post_attention_layernorm")
        q_last = attention.q_proj
        if c.q_lora_rank is not None:
            self._output(attention.q_a_proj, "self_attn.q_a")
            self._output(attention.q_a_layernorm, "self_attn.q_a_norm")
            q_last = attention.q_b_proj
        self._output(q_last, "self_attn.q", (c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim))
        self._output(attention.kv_a_proj_with_mqa, "self_attn.compressed_kv")
        self._output(attention.kv_a_layernorm, "self_attn.latent")
        self._input(attention.o_proj, "self_attn.context")
        self.handles.append(attention.register_forward_hook(
            lambda m, i, out: self._put("self_attn.probs", out[1][0])))
        if hasattr(mlp, "gate"):
            self._output(mlp.experts, "mlp.routed_out")
            self._output(mlp.shared_experts, "mlp.shared_out")
        self._patch_rope()

    def _put(self, name, value, keep=False):
        if not keep:
            value = value.detach().float()
        key = f"{self.names[self.sequence]}.layers.{self.index}.{name}"
        self.out[key] = value.clone().contiguous()

    def _output(self, module, name, shape=None):
        def hook(_, __, out):
            out = out[0] if isinstance(out, tuple) else out
            out = out.reshape(-1, out.shape[-1])
            self._put(name, out if shape is None else out.reshape(-1, *shape))
        self.handles.append(module.register_forward_hook(hook))

    def _input(self, module, name):
        self.handles.append(module.register_forward_hook(
            lambda _, given, __: self._put(name, given[0].reshape(-1, given[0].shape[-1]))))

    def _gate(self, _, __, out):
        logits, weights, ids = out
        if self.full:
            self._put("mlp.gate.logits", logits)
        order = ids.argsort(-1)
        self._put("mlp.gate.topk_idx", ids.gather(-1, order).int(), keep=True)
        self._put("mlp.gate.topk_weight", weights.gather(-1, order))

    def _patch_rope(self):
        """The rotated parts are no module's output; V3's code has them in halves, V2's in pairs."""
        module = self.model.module
        name = "apply_rotary_pos_emb_interleave" if hasattr(module, "apply_rotary_pos_emb_interleave") \
            else "apply_rotary_emb"
        rotate, in_halves = getattr(module, name), name == "apply_rotary_pos_emb_interleave"

        def recorded(q, k, *args, **kwargs):
            q_out, k_out = rotate(q, k, *args, **kwargs)
            q_seen, k_seen = q_out[0].transpose(0, 1), k_out[0, 0]  # [S, H, rope], [S, rope]
            half = k_seen.shape[-1] // 2
            if in_halves:
                to_pairs = lambda t: torch.stack((t[..., :half], t[..., half:]), -1).flatten(-2)
                q_pairs, k_pairs = to_pairs(q_seen), to_pairs(k_seen)
            else:
                q_pairs, k_pairs = q_seen, k_seen
            self._put("self_attn.q_pe_rope.pairs", q_pairs)
            self._put("self_attn.k_pe_rope.pairs", k_pairs)
            self._put("self_attn.k_pe_rope.halves", torch.cat((k_pairs[..., 0::2], k_pairs[..., 1::2]), -1))
            return q_out, k_out

        setattr(module, name, recorded)
        self.restore = lambda: setattr(module, name, rotate)

    def close(self):
        for handle in self.handles:
            handle.remove()
        if self.full:
            self.restore()


def read_prompts(args, config):
    prompts = []
    tokenizer = read_tokenizer(args.folder)
    for text in args.prompt:
        if tokenizer is None:
            raise SystemExit(f"{args.folder}: no tokenizer.json: give ids with --tokens")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        bos = config.bos_token_id
        prompts.append(ids if bos is None or ids[:1] == [bos] else [bos] + ids)
    for path in args.tokens:
        prompts.append(json.loads(pathlib.Path(path).read_text()))
    if not prompts and tokenizer is not None:
        args.prompt = [DEFAULT_PROMPT]
        return read_prompts(args, config)
    if not prompts:
        random = torch.Generator().manual_seed(SEED)
        more = torch.randint(1, config.vocab_size, (N_RANDOM_IDS - 1,), generator=random)
        prompts = [[config.bos_token_id or 0] + more.tolist()]
    for ids in prompts:
        if not ids or any(not isinstance(i, int) or not 0 <= i < config.vocab_size for i in ids):
            raise SystemExit(f"a prompt: expected ids from 0 to {config.vocab_size - 1}, at least one")
    return prompts


def full_layers(config, which):
    n = config.num_hidden_layers
    if which == "all":
        return set(range(n))
    first_moe = min(config.first_k_dense_replace, n - 1)
    return {0, first_moe, n - 1}


@torch.no_grad()
def record(model, prompts, layers, n_greedy, say):
    names, out = [f"p{i}" for i in range(len(prompts))], {}
    full = full_layers(model.config, layers)
    caches = [model.new_cache() if n_greedy else None for _ in prompts]

    def on_layer(i, layer):
        say(f"layer {i + 1} of {model.config.num_hidden_layers}")
        return Tap(model, i, layer, names, i in full, out)

    hidden = model.forward(prompts, caches, on_layer)
    rows = []
    for name, ids, x in zip(names, prompts, hidden):
        normed = model.final_norm(x)
        out[f"{name}.input_ids"] = torch.tensor(ids, dtype=torch.int32)
        out[f"{name}.embed"], out[f"{name}.final_norm"] = model.embed(ids), normed
        out[f"{name}.logits"] = model.logits(normed)
        rows.append([out[f"{name}.logits"][-1]])
    for step in range(1, n_greedy):
        say(f"greedy token {step + 1} of {n_greedy}")
        hidden = model.forward([[int(r[-1].argmax())] for r in rows], caches)
        for r, x in zip(rows, hidden):
            r.append(model.logits(model.final_norm(x))[0])
    for name, r in zip(names, rows):
        if n_greedy:
            out[f"{name}.greedy.logits"] = torch.stack(r)
            out[f"{name}.greedy.ids"] = torch.stack(r).argmax(-1).int()
    rotary = model.rotary
    out["rope.inv_freq"] = rotary.inv_freq.float()
    out["rope.cos_sin_scale"] = torch.tensor([float(rotary.attention_scaling)])
    out["rope.softmax_scale"] = torch.tensor([float(model.layer(0).self_attn.scaling)])
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--out", help="default: FOLDER/reference.safetensors, where `exo verify` looks")
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--tokens", action="append", default=[])
    parser.add_argument("--greedy", type=int, default=0, metavar="N")
    parser.add_argument("--layers", choices=("some", "all"), default="some")
    args = parser.parse_args()
    out = args.out or str(pathlib.Path(args.folder) / "reference.safetensors")
    model = LayeredModel(args.folder)
    prompts = read_prompts(args, model.config)
    tensors = record(model, prompts, args.layers, args.greedy, lambda text: print(text, flush=True))
    kept = {name: t.contiguous().clone() for name, t in tensors.items()}
    save_file(kept, out, {"made_by": "exo.cpp tools/make_reference.py", "model": pathlib.Path(args.folder).resolve().name,
                          "transformers": transformers.__version__, "torch": torch.__version__, "compute": "float32"})
    print(f"{len(kept)} tensors of {len(prompts)} prompts: {out}")


if __name__ == "__main__":
    main()

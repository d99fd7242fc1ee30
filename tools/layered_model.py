"""A Hugging Face DeepSeek checkpoint run through transformers' own layers, in float32 on the CPU, one layer at a time.

Never more than one layer's attention and one expert is in memory beside the activations (DeepSeek-V3: some 3 GB), so
any machine that can hold the files on its disk can say what the model computes. Needs torch, transformers >= 5 and
safetensors; model types deepseek_v2, deepseek_v3 and kimi_k2 (whose layers are deepseek_v3's).
"""
import copy
import inspect
import json
import pathlib

import torch
import transformers
from safetensors import safe_open
from transformers import DynamicCache
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

HEAD_ROWS = 8192  # of the output matrix, at a time


class Checkpoint:
    """Tensors of a folder by name, as float32; FP8 blocks are multiplied by their scales."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        index = folder / "model.safetensors.index.json"
        if index.exists():
            self.file_of = json.loads(index.read_text())["weight_map"]
        else:
            with safe_open(folder / "model.safetensors", "pt") as file:
                self.file_of = {name: "model.safetensors" for name in file.keys()}
        self.folder, self.files = folder, {}
        quantised = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
        if quantised and quantised.get("quant_method") != "fp8":
            raise SystemExit(f"{folder}: quant_method {quantised.get('quant_method')!r}: expected none or fp8")
        self.block = quantised.get("weight_block_size") or [128, 128]

    def _file(self, name):
        if name not in self.file_of:
            raise SystemExit(f"{self.folder}: no tensor {name}")
        path = self.file_of[name]
        if path not in self.files:
            self.files[path] = safe_open(self.folder / path, "pt")
        return self.files[path]

    def has(self, name):
        return name in self.file_of

    def tensor(self, name):
        """[...] float32"""
        value = self._file(name).get_tensor(name)
        scale_name = name + "_scale_inv"
        if not self.has(scale_name):
            return value.float()
        scale = self._file(scale_name).get_tensor(scale_name).float()
        for axis, block in enumerate(self.block):
            scale = scale.repeat_interleave(block, axis).narrow(axis, 0, value.shape[axis])
        return value.float() * scale

    def rows(self, name, begin, end):
        """[end - begin, n] float32, of a matrix that is never FP8 (embedding, head)."""
        return self._file(name).get_slice(name)[begin:end].float()

    def n_rows(self, name):
        return self._file(name).get_slice(name).get_shape()[0]


class StreamedExperts(torch.nn.Module):
    """transformers' experts, each made, used and dropped; added up in their order, as it does."""

    def __init__(self, experts_class, config, checkpoint, prefix):
        super().__init__()
        one = copy.deepcopy(config)
        for name in ("n_routed_experts", "num_local_experts", "num_experts"):
            if hasattr(one, name):
                setattr(one, name, 1)
        self.make = lambda: experts_class(one)
        self.checkpoint, self.prefix = checkpoint, prefix

    def forward(self, x, top_k_index, top_k_weights):
        out = torch.zeros_like(x)
        for e in top_k_index.unique().tolist():
            tokens, place = torch.where(top_k_index == e)
            with torch.device("meta"):
                expert = self.make()
            w = [self.checkpoint.tensor(f"{self.prefix}.{e}.{p}_proj.weight") for p in ("gate", "up", "down")]
            expert.load_state_dict({"gate_up_proj": torch.cat(w[:2])[None], "down_proj": w[2][None]}, assign=True)
            y = expert(x[tokens], torch.zeros(len(tokens), 1, dtype=torch.long), top_k_weights[tokens, place, None])
            out.index_add_(0, tokens, y)
        return out


def read_config(folder):
    given = json.loads((pathlib.Path(folder) / "config.json").read_text())
    given.pop("quantization_config", None)
    given.pop("auto_map", None)
    kind = given.pop("model_type", None)
    if kind == "deepseek_v2":
        config, module = transformers.DeepseekV2Config(**given), v2
    elif kind in ("deepseek_v3", "kimi_k2"):
        config, module = transformers.DeepseekV3Config(**given), v3
    else:
        raise SystemExit(f"{folder}: model_type {kind!r}: expected deepseek_v2, deepseek_v3 or kimi_k2")
    config._attn_implementation = config._experts_implementation = "eager"
    return config, module


class LayeredModel:
    def __init__(self, folder):
        self.config, self.module = read_config(folder)
        self.checkpoint = Checkpoint(folder)
        prefix = "DeepseekV2" if self.module is v2 else "DeepseekV3"
        self.layer_class = getattr(self.module, prefix + "DecoderLayer")
        self.norm_class = getattr(self.module, prefix + "RMSNorm")
        self.rotary = getattr(self.module, prefix + "RotaryEmbedding")(self.config)
        # transformers 5.24 calls it cache, those before past_key_values.
        parameters = inspect.signature(inspect.unwrap(self.layer_class.forward)).parameters
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"

    def layer(self, i):
        with torch.device("meta"):
            layer = self.layer_class(self.config, i)
        prefix = f"model.layers.{i}."
        if hasattr(layer.mlp, "experts"):
            layer.mlp.experts = StreamedExperts(type(layer.mlp.experts), self.config, self.checkpoint,
                                                prefix + "mlp.experts")
        weights = {name: self.checkpoint.tensor(prefix + name) for name in layer.state_dict()}
        layer.load_state_dict(weights, assign=True)
        return layer.eval()

    def embed(self, ids):
        """ids [n] -> [n, hidden_size] float32"""
        rows = {i: self.checkpoint.rows("model.embed_tokens.weight", i, i + 1) for i in set(ids)}
        return torch.cat([rows[i] for i in ids])

    def final_norm(self, x):
        norm = self.norm_class(self.config.hidden_size, eps=self.config.rms_norm_eps)
        norm.load_state_dict({"weight": self.checkpoint.tensor("model.norm.weight")})
        return norm(x)

    def logits(self, x):
        """[n, hidden_size] after final_norm -> [n, vocab_size], a block of the matrix at a time."""
        name = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        n = self.checkpoint.n_rows(name)
        parts = [x @ self.checkpoint.rows(name, begin, min(begin + HEAD_ROWS, n)).T for begin in range(0, n, HEAD_ROWS)]
        return torch.cat(parts, -1)

    def run_layer(self, layer, x, n_past=0, cache=None):
        """x [n, hidden_size] at positions n_past... -> the same after the layer; causal among themselves."""
        n = len(x)
        positions = torch.arange(n_past, n_past + n)[None]
        mask = torch.full((n, n_past + n), float("-inf")).triu(n_past + 1)[None, None]
        out = layer(x[None], attention_mask=mask, position_ids=positions,
                    position_embeddings=self.rotary(x[None], positions), **{self.cache_name: cache})
        return (out[0] if isinstance(out, tuple) else out)[0]

    @torch.no_grad()
    def forward(self, sequences, caches=None, on_layer=None):
        """Ids of several sequences -> [n, hidden_size] of each, before the final norm. All of them go through a layer
        while it is in memory. `on_layer(i, layer)` may hook it and returns what takes the hooks off again."""
        caches = caches or [None] * len(sequences)
        n_past = [0 if c is None else c.get_seq_length() for c in caches]
        hidden = [self.embed(ids) for ids in sequences]
        for i in range(self.config.num_hidden_layers):
            layer = self.layer(i)
            done = on_layer(i, layer) if on_layer else None
            for s, x in enumerate(hidden):
                if done:
                    done.sequence = s
                hidden[s] = self.run_layer(layer, x, n_past[s], caches[s])
            if done:
                done.close()
        return hidden

    def new_cache(self):
        return DynamicCache()


def read_tokenizer(folder):
    """tokenizers.Tokenizer, or None where the folder has none."""
    path = pathlib.Path(folder) / "tokenizer.json"
    if not path.exists():
        return None
    from tokenizers import Tokenizer
    return Tokenizer.from_file(str(path))

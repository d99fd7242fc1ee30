"""Writes odd_models.json: what transformers computes, in fp32, of random checkpoints whose shapes and config fields no
published model has. odd_models_test.py holds exo to it. Needs torch and transformers (5.24 wrote the file).

    EXO=build/release/exo python tests/make_odd_models.py"""
import json
import random

import torch
from safetensors.torch import load_file
from transformers import DeepseekV2ForCausalLM, DeepseekV3ForCausalLM
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2MLP
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MLP

from exo_testing import Home

BASE = dict(model_type="deepseek_v3", vocab_size=101, hidden_size=72, intermediate_size=88, moe_intermediate_size=24,
            num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=40, kv_lora_rank=33,
            qk_nope_head_dim=20, qk_rope_head_dim=6, v_head_dim=12, n_routed_experts=12, n_shared_experts=1,
            num_experts_per_tok=3, n_group=3, topk_group=2, first_k_dense_replace=1, moe_layer_freq=1,
            scoring_func="sigmoid", topk_method="noaux_tc", norm_topk_prob=True, routed_scaling_factor=2.5,
            hidden_act="silu", rms_norm_eps=1e-6, rope_theta=10000.0, max_position_embeddings=512,
            tie_word_embeddings=False, attention_bias=False, bos_token_id=0, eos_token_id=1, torch_dtype="bfloat16")
YARN = dict(type="yarn", factor=40.0, original_max_position_embeddings=16, beta_fast=32, beta_slow=1)
V2 = dict(model_type="deepseek_v2", kv_lora_rank=34, scoring_func="softmax", norm_topk_prob=False)
MODELS = {
    "one layer of experts": dict(num_hidden_layers=1, first_k_dense_replace=0),
    "one dense layer": dict(num_hidden_layers=1),
    "all layers dense": dict(first_k_dense_replace=3),
    "more dense layers than there are": dict(first_k_dense_replace=9),
    "experts in every other layer": dict(num_hidden_layers=4, moe_layer_freq=2),
    "no q-LoRA, tied embeddings": dict(q_lora_rank=None, tie_word_embeddings=True),
    "odd sizes": dict(vocab_size=33, hidden_size=51, intermediate_size=19, moe_intermediate_size=7, kv_lora_rank=5,
                      q_lora_rank=13, qk_nope_head_dim=7, qk_rope_head_dim=2, v_head_dim=3),
    "sizes beyond a tile": dict(vocab_size=131, hidden_size=130, intermediate_size=150, moe_intermediate_size=65,
                                kv_lora_rank=100, q_lora_rank=65, qk_nope_head_dim=65, qk_rope_head_dim=34,
                                v_head_dim=70, num_attention_heads=2, num_key_value_heads=2),
    "one head, one group, no renormalisation": dict(num_attention_heads=1, num_key_value_heads=1, n_group=1,
                                                    topk_group=1, norm_topk_prob=False),
    "all experts chosen": dict(num_experts_per_tok=12, topk_group=3),
    "YaRN whose two scales differ": dict(rope_scaling=dict(YARN, mscale=0.707, mscale_all_dim=1.0)),
    "V2, greedy": dict(V2, topk_method="greedy", n_shared_experts=2),
    "V2, groups, YaRN": dict(V2, topk_method="group_limited_greedy", routed_scaling_factor=16.0,
                             rope_scaling=dict(YARN, mscale=0.707, mscale_all_dim=0.707)),
}


def last_logits(folder, config, ids):
    v3 = config["model_type"] == "deepseek_v3"
    model = (DeepseekV3ForCausalLM if v3 else DeepseekV2ForCausalLM).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
    stored = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    for i, layer in enumerate(model.model.layers):  # transformers has no moe_layer_freq
        if i >= config["first_k_dense_replace"] and i % config["moe_layer_freq"] != 0:
            layer.mlp = (DeepseekV3MLP if v3 else DeepseekV2MLP)(model.config)
            layer.mlp.load_state_dict({n: stored[f"model.layers.{i}.mlp.{n}"] for n in layer.mlp.state_dict()})
    with torch.no_grad():
        return model.eval().float()(torch.tensor([ids])).logits[0, -1].tolist()


def main():
    out = []
    with Home() as home:
        for seed, (name, change) in enumerate(MODELS.items(), 1):
            config = {**BASE, **change}
            folder, file = home.path / str(seed), home.path / "config.json"
            file.write_text(json.dumps(config))
            home.exo("random-checkpoint", folder, "--config", file, "--seed", seed)
            random.seed(seed)
            ids = [random.randrange(config["vocab_size"]) for _ in range(70)]
            logits = [round(v, 6) for v in last_logits(folder, config, ids)]
            out.append({"name": name, "seed": seed, "config": config, "ids": ids, "logits": logits})
    with open("tests/odd_models.json", "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(model) for model in out) + "\n]\n")


main()

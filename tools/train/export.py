"""Training state <-> Hugging Face folder (DeepSeek-V3 names, the MTP layer stored after the last one).

    python export.py --state state.pt --tokenizer tokenizer.json --template deepseek-r1.jinja --out models/tiny
    python export.py --fp8-of models/tiny --out build/tiny-fp8

The second form writes a bf16 folder as an FP8 checkpoint in DeepSeek's form, to measure that format with.
"""
import argparse
import json
import pathlib
import shutil

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from model import CONFIG, Model, bf16

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


def names(c):
    """(checkpoint name, our name, which part) of every tensor; part: None, a half of gate_up, or (expert, half)."""
    n = c["num_hidden_layers"]
    yield "model.embed_tokens.weight", "embed_tokens", None
    yield "model.norm.weight", "norm.weight", None
    yield "lm_head.weight", "head", None
    for i in range(n + 1):
        to, own = f"model.layers.{i}.", "mtp." if i == n else f"layers.{i}."
        for part in ("input_layernorm", "post_attention_layernorm", "self_attn.q_a_proj", "self_attn.q_a_layernorm",
                     "self_attn.q_b_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm",
                     "self_attn.kv_b_proj", "self_attn.o_proj"):
            yield to + part + ".weight", own + part + ".weight", None
        dense = i < c["first_k_dense_replace"]
        mlp = "mlp." if dense else "mlp.shared_experts."
        yield to + mlp + "gate_proj.weight", own + mlp + "gate_up_proj.weight", 0
        yield to + mlp + "up_proj.weight", own + mlp + "gate_up_proj.weight", 1
        yield to + mlp + "down_proj.weight", own + mlp + "down_proj.weight", None
        if not dense:
            yield to + "mlp.gate.weight", own + "mlp.gate.weight", None
            yield to + "mlp.gate.e_score_correction_bias", own + "mlp.bias", None
            for e in range(c["n_routed_experts"]):
                yield to + f"mlp.experts.{e}.gate_proj.weight", own + "mlp.gate_up", (e, 0)
                yield to + f"mlp.experts.{e}.up_proj.weight", own + "mlp.gate_up", (e, 1)
                yield to + f"mlp.experts.{e}.down_proj.weight", own + "mlp.down", (e, None)
    to = f"model.layers.{n}."
    yield to + "enorm.weight", "enorm.weight", None
    yield to + "hnorm.weight", "hnorm.weight", None
    yield to + "eh_proj.weight", "eh_proj.weight", None
    yield to + "shared_head.norm.weight", "mtp_norm.weight", None
    yield to + "embed_tokens.weight", "embed_tokens", None
    yield to + "shared_head.head.weight", "head", None


def piece(tensor, part):
    expert, half = part if isinstance(part, tuple) else (None, part)
    if expert is not None:
        tensor = tensor[expert]
    return tensor if half is None else tensor.chunk(2, 0)[half]


def load(folder):
    """The model of a Hugging Face folder, for evaluation."""
    model = bf16(Model()).eval()
    own = model.state_dict()  # shares its memory with the model
    stored = load_file(pathlib.Path(folder) / "model.safetensors")
    wanted = list(names(CONFIG))
    assert {n for n, _, _ in wanted} == set(stored), "other tensors than expected"
    for name, ours, part in wanted:
        piece(own[ours], part).copy_(stored[name])
    return model


def config(c):
    return dict(
        architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", attention_bias=False, attention_dropout=0.0,
        bos_token_id=0, eos_token_id=1, ep_size=1, hidden_act="silu", initializer_range=0.02, moe_layer_freq=1,
        norm_topk_prob=True, num_key_value_heads=c["num_attention_heads"], num_nextn_predict_layers=1, rope_scaling=None,
        scoring_func="sigmoid", seq_aux=True, tie_word_embeddings=False, topk_method="noaux_tc", torch_dtype="bfloat16",
        use_cache=True, **{k: int(v) if k == "rope_theta" else v for k, v in c.items()})


FP8_BLOCK = 128
FP8_LARGEST = 448.0


def fp8(weight):
    """(e4m3 codes, float32 factor of every block of 128 x 128): weight is about code * factor."""
    rows, cols = weight.shape
    blocks = F.pad(weight.float(), (0, -cols % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    blocks = blocks.unflatten(1, (-1, FP8_BLOCK)).unflatten(0, (-1, FP8_BLOCK))  # [block, row, block, column]
    factor = blocks.abs().amax((1, 3)) / FP8_LARGEST
    factor[factor == 0] = 1.0
    codes = (blocks / factor[:, None, :, None]).flatten(2, 3).flatten(0, 1)[:rows, :cols]
    return codes.to(torch.float8_e4m3fn).contiguous(), factor


def write_fp8(source, out):
    """What DeepSeek-V3 stores in FP8: every projection of attention and MLPs; the gate, MTP's eh_proj, the embedding and
    the head stay in bf16."""
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith(("_proj.weight", "kv_a_proj_with_mqa.weight")) and not name.endswith("eh_proj.weight"):
            tensors[name], tensors[name + "_scale_inv"] = fp8(tensor)
        else:
            tensors[name] = tensor
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8",
                                         weight_block_size=[FP8_BLOCK, FP8_BLOCK])
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, out / name)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--state")
    args.add_argument("--tokenizer")
    args.add_argument("--template", help="R1's chat template")
    args.add_argument("--fp8-of", help="a bf16 folder to write as an FP8 checkpoint, instead of a training state")
    args.add_argument("--out", required=True)
    args = args.parse_args()
    out = pathlib.Path(args.out)
    if not args.fp8_of and not (args.state and args.tokenizer and args.template):
        raise SystemExit("export.py needs --state, --tokenizer and --template, or --fp8-of")
    out.mkdir(parents=True, exist_ok=True)
    if args.fp8_of:
        write_fp8(pathlib.Path(args.fp8_of), out)
        return

    state = torch.load(args.state, map_location="cpu")
    own = dict(state["optimiser"]["master"])
    moes = [f"layers.{i}" for i in range(CONFIG["first_k_dense_replace"], CONFIG["num_hidden_layers"])] + ["mtp"]
    own |= {f"{m}.mlp.bias": bias for m, bias in zip(moes, state["bias"])}
    tensors = {name: piece(own[ours], part).to(torch.float32 if ours.endswith("bias") else torch.bfloat16).clone()
               for name, ours, part in names(CONFIG)}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})

    def write(name, value):
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    write("config.json", dict(sorted(config(CONFIG).items())))
    write("generation_config.json", dict(bos_token_id=0, eos_token_id=1, do_sample=True, temperature=0.6, top_p=0.95))
    shutil.copyfile(args.tokenizer, out / "tokenizer.json")

    def token(content):
        return dict(__type="AddedToken", content=content, lstrip=False, normalized=True, rstrip=False, single_word=False)

    write("tokenizer_config.json", dict(
        add_bos_token=True, add_eos_token=False, bos_token=token(BOS), eos_token=token(EOS), pad_token=token(EOS),
        unk_token=None, clean_up_tokenization_spaces=False, legacy=True, sp_model_kwargs={},
        model_max_length=CONFIG["max_position_embeddings"], tokenizer_class="PreTrainedTokenizerFast",
        chat_template=pathlib.Path(args.template).read_text(encoding="utf-8")))
    print(f"step {state['step']}, {state['seen']} tokens, {sum(t.numel() for t in tensors.values())} values stored")


if __name__ == "__main__":
    main()

"""Checks a model folder against transformers: every tensor finds its place, logits and greedy text agree with our own model.

    python check_hf.py --model models/tiny
"""
import argparse
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data import Text
from export import load
from generate import generate

ASKED = ["What is 47 + 38?", "Which is larger, 52 or 29?", "How many r's are in strawberry?", "Reverse the word castle.",
         "What is 15% of 240?", "Who are you?", "Tell me a story about a king and a fox."]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--model", required=True)
    args = args.parse_args()

    theirs, info = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, output_loading_info=True)
    theirs.eval()
    mtp = f"model.layers.{theirs.config.num_hidden_layers}."
    extra = [k for k in info["unexpected_keys"] if not k.startswith(mtp)]
    assert not info["missing_keys"] and not info["mismatched_keys"] and not extra, info
    tok = AutoTokenizer.from_pretrained(args.model)
    ours = load(args.model).float()
    text = Text(str(pathlib.Path(args.model) / "tokenizer.json"))

    worst, same = 0.0, 0
    for ask in ASKED:
        prompt = tok.apply_chat_template([{"role": "user", "content": ask}], add_generation_prompt=True, tokenize=False)
        ids = tok(prompt, add_special_tokens=False).input_ids
        assert ids == [0] + text.prompt(ask), "the chat template gives another prompt than the training data"
        said = generate(ours, [ids], 150)[0]
        out = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=150, temperature=None, top_p=None)
        out = [i for i in out[0].tolist()[len(ids):] if i != 1]
        same += out == said
        with torch.no_grad():
            full = torch.tensor([ids + said])
            worst = max(worst, (theirs(full).logits - ours.logits(ours.hidden(full))).abs().max().item())
        print(repr(ask), "->", repr(tok.decode(out)))
    print(f"greedy text equal for {same} of {len(ASKED)}; largest difference of logits {worst:.1e} (float32)")
    assert same == len(ASKED) and worst < 1e-3


if __name__ == "__main__":
    main()

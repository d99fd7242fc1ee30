#!/usr/bin/env python3
"""Perplexity of a text by transformers, in float32 on the CPU: what `exo perplexity --compute fp32` is held to.

    tools/perplexity.py FOLDER... --file TEXT --context N [--record FILE.json]

Windows of N tokens that don't overlap, each begun with BOS, which is not scored (as exo's). A folder without a
tokenizer.json is read by bytes: byte b is token b. --record writes the figures, with the sha256 of the weights and the
text, to FILE.json, replacing those of the same folder's name: tests/perplexity.json is made with

    tools/perplexity.py ../shared/goldens/{v3_bf16,v3_fp8,v2_lite,moonlight} models/tiny \\
        --file tests/corpus.txt --context 512 --record tests/perplexity.json
"""
import argparse
import hashlib
import json
import math
import pathlib

import torch
import transformers

from layered_model import LayeredModel, read_tokenizer


def sha256(paths):
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@torch.no_grad()
def perplexity(folder, text, context):
    model, tokenizer = LayeredModel(folder), read_tokenizer(folder)
    ids = tokenizer.encode(text, add_special_tokens=False).ids if tokenizer else list(text.encode())
    step = context - 1
    windows = [[model.config.bos_token_id] + ids[i:i + step] for i in range(0, len(ids), step)]
    nll, n = 0.0, 0
    for window, hidden in zip(windows, model.forward(windows)):
        rows = torch.log_softmax(model.logits(model.final_norm(hidden[:-1])).double(), -1)
        targets = torch.tensor(window[1:])
        nll -= rows.gather(1, targets[:, None]).sum().item()
        n += len(targets)
    return {"perplexity": math.exp(nll / n), "n_tokens": n, "mean_nll": nll / n}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    parser.add_argument("--file", required=True, type=pathlib.Path)
    parser.add_argument("--context", required=True, type=int)
    parser.add_argument("--record", type=pathlib.Path)
    args = parser.parse_args()
    data = args.file.read_bytes()
    record = {"models": {}}
    if args.record and args.record.exists():
        record = json.loads(args.record.read_text())
    record |= {"text": args.file.name, "text_sha256": hashlib.sha256(data).hexdigest(), "context": args.context,
               "made_by": "tools/perplexity.py, float32", "transformers": transformers.__version__,
               "torch": torch.__version__}
    for folder in args.folders:
        figures = perplexity(folder, data.decode(), args.context)
        weights = list(folder.glob("model*.safetensors")) + list(folder.glob("tokenizer.json"))
        record["models"][folder.resolve().name] = figures | {"weights_sha256": sha256(weights)}
        print(folder, json.dumps(figures), flush=True)
    if args.record:
        args.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A last phase for the MTP layer alone: it learns to guess what the model itself will say.

    python tune_mtp.py --state state.pt --tokenizer tokenizer.json --corpus FOLDER --out tuned.pt --minutes 5

The rest of the model is frozen. Texts are the training data's and what the model itself answers, greedily and sampled; the
target is always the model's own first choice: a draft is accepted when it is just that.
"""
import argparse
import copy
import random
import time

import torch

import stories
from data import BOS, EOS, Data, Text
from generate import generate
from model import Model, bf16
from train import Optimiser

PROMPTS, ROWS = 64, 16  # answered together; trained on in one step


def texts(model, text, data, turn):
    """ids [n, t] of prompts with answers, and where in them the answers are. Every fourth batch is exercises, every fourth
    what the model says itself."""
    if turn % 4 == 3:
        return data.padded([data.exercise() for _ in range(PROMPTS)], 64)
    pairs = [data.turn() for _ in range(PROMPTS)]
    if turn % 4 == 1:
        prompts = [[BOS] + text.prompt(stories.story(data.rng)[0]) for _ in pairs]
        said = generate(model, prompts, 260, data.rng.choice([0.0, 0.6]), 0.95)
        pairs = [(p, s + [EOS]) for p, s in zip(prompts, said)]
    return data.padded(pairs, 64)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--state", required=True)
    args.add_argument("--tokenizer", required=True)
    args.add_argument("--corpus", required=True)
    args.add_argument("--out", required=True)
    args.add_argument("--minutes", type=float, default=5)
    args.add_argument("--lr", type=float, default=2e-3)
    args = args.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(4)

    state = torch.load(args.state, map_location="cpu")
    model = bf16(Model()).eval()
    optimiser = Optimiser(model, args.lr)
    optimiser.load(state["optimiser"])
    for moe, bias in zip(model.moes(), state["bias"]):
        moe.bias.copy_(bias)
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith(("mtp", "enorm", "hnorm", "eh_proj"))
    text = Text(args.tokenizer)
    data = Data(args.corpus, text, seed=random.Random(state["step"]).randrange(10 ** 6))

    plain = copy.deepcopy(model).float()  # generates: in bf16 a CPU compiles kernels for every new length
    began, step, turn = time.time(), 0, 0
    while (spent := (time.time() - began) / 60) < args.minutes:
        ids, wanted = texts(plain, text, data, turn)
        with torch.no_grad():
            hidden = torch.cat([model.hidden(rows[:, :-1]) for rows in ids.split(ROWS)])
            own = torch.cat([model.logits(h).argmax(-1) for h in hidden.split(ROWS)])
        right = count = 0
        for rows in torch.randperm(len(ids)).split(ROWS):
            state_of = model.mtp_hidden(hidden[rows], ids[rows, 1:])[:, :-1]
            at = wanted[rows, 2:].flatten().nonzero()[:, 0]
            logits, target = model.logits(state_of.flatten(0, 1)[at]).float(), own[rows, 1:].flatten()[at]
            torch.nn.functional.cross_entropy(logits, target).backward()
            step += 1
            optimiser.step(step, min(1.0, step / 20) * max(0.0, 1 - spent / args.minutes))
            right += (logits.argmax(-1) == target).sum().item()
            count += at.numel()
        print(f"{spent:.1f} min, step {step}, accepted {right / count:.3f}", ("stories", "its own stories", "stories", "exercises")[turn % 4], flush=True)
        turn += 1
    state["optimiser"] = optimiser.state()
    torch.save(state, args.out)


if __name__ == "__main__":
    main()

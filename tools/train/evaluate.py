"""Measures a model folder: accuracy per kind of exercise, held-out perplexity, MTP acceptance, expert balance, stories.

    python evaluate.py --model models/tiny --corpus FOLDER [--cases 200] [--out results.json]

Prints the tables of the model card.
"""
import argparse
import json
import math
import pathlib
import random

import torch
import torch.nn.functional as F

import corpus
import exercises
import stories
from data import BOS, EOS, Data, Text
from export import load
from generate import generate

ASKED = ["Tell me a story about a king and a fox.", "Tell me a story about a princess.", "Tell me a tale of a wolf.",
         "Please tell me a story about a poor fisherman.", "Write a short story about a witch and a forest."]


def split(text):
    thoughts, _, answer = text.partition("</think>")
    return thoughts.strip(), answer.strip()


def accuracies(model, text, data, cases, temperature):
    out = {}
    for kind in data.kinds:
        asked = exercises.unseen(data.rng, kind, cases)
        said = generate(model, [[BOS] + text.prompt(ask) for ask, _, _ in asked], 200, temperature, 0.95)
        good = [exercises.right(kind, split(text.plain(ids))[1], answer) for ids, (_, _, answer) in zip(said, asked)]
        out[kind] = sum(good) / cases
        wrong = next(((text.plain(i), a[0]) for g, i, a in zip(good, said, asked) if not g), None)
        print(f"{kind}: {out[kind]:.1%}", "" if wrong is None else f"  (wrong: {wrong[1]!r} -> {wrong[0]!r})", flush=True)
    return out


def two_digit_sums(model, text, cases):
    """The additions of the project's target: both numbers of two digits, unseen."""
    rng, asked, pairs = random.Random(11), [], set()
    while len(asked) < cases:
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        if (min(a, b), max(a, b)) not in pairs and exercises.is_test("addition", min(a, b), max(a, b)):
            pairs.add((min(a, b), max(a, b)))
            asked.append((f"What is {a} + {b}?", f"{a} + {b} = {a + b}"))
    said = generate(model, [[BOS] + text.prompt(q) for q, _ in asked], 120)
    return sum(split(text.plain(s))[1] == a for s, (_, a) in zip(said, asked)) / cases


def two_digit_comparisons(model, text, cases):
    rng, asked, pairs = random.Random(12), [], set()
    while len(asked) < cases:
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        if a != b and (min(a, b), max(a, b)) not in pairs and exercises.is_test("comparison", min(a, b), max(a, b)):
            pairs.add((min(a, b), max(a, b)))
            asked.append((f"Which is larger, {a} or {b}?", f"{max(a, b)} is larger."))
    said = generate(model, [[BOS] + text.prompt(q) for q, _ in asked], 120)
    return sum(split(text.plain(s))[1] == a for s, (_, a) in zip(said, asked)) / cases


@torch.no_grad()
def held_out(model, text, folder, window=512, tokens=40_000):
    """Perplexity a token and a character of the book kept out, windows side by side; MTP's agreement on the way."""
    ids, characters = [], 0
    for _, paragraphs in corpus.books(folder, held_out=True):
        tale = "\n\n".join(paragraphs)
        ids += [BOS] + text.tok.encode(tale).ids + [EOS]
        characters += len(tale)
    per_token = characters / len(ids)
    rows = torch.tensor(ids[:tokens // window * window + 1])
    loss, agree, count, drafts = 0.0, 0, 0, 0
    for moe in model.moes():
        moe.train()  # counts the load
    for at in range(0, len(rows) - window, window * 8):
        chunk = rows[at:at + window * 8 + 1]
        n = (len(chunk) - 1) // window
        x, y = chunk[:n * window].view(n, window), chunk[1:n * window + 1].view(n, window)
        h = model.hidden(x)
        logits = model.logits(h).float()
        loss += F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").item()
        count += y.numel()
        draft = model.logits(model.mtp_hidden(h, y)).argmax(-1)
        agree += (draft[:, :-1] == logits.argmax(-1)[:, 1:]).sum().item()
        drafts += draft[:, :-1].numel()
    loads = [[round(v, 3) for v in (m.load / m.load.mean()).tolist()] for m in model.moes()]
    model.eval()
    return math.exp(loss / count), math.exp(loss / count / per_token), agree / drafts, loads


@torch.no_grad()
def acceptance(model, prompts, said):
    """Share of MTP's drafts that are the model's own greedy next token, along generated replies."""
    hit = count = 0
    for p, s in zip(prompts, said):
        ids = torch.tensor([p + s])
        h = model.hidden(ids)
        own = model.logits(h).argmax(-1)[0]
        draft = model.logits(model.mtp_hidden(h[:, :-1], ids[:, 1:])).argmax(-1)[0]
        first = len(p) - 1
        hit += (draft[first:] == own[first + 1:]).sum().item()
        count += len(draft) - first
    return hit / count


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--model", required=True)
    args.add_argument("--corpus", required=True)
    args.add_argument("--cases", type=int, default=200)
    args.add_argument("--temperature", type=float, default=0.0)
    args.add_argument("--no-kinds", action="store_true", help="leave out what evaluate_formats.py measures with the engine")
    args.add_argument("--out")
    args = args.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(3)
    model = load(args.model).float()  # in bf16 a CPU compiles kernels for every new length of text
    text = Text(str(pathlib.Path(args.model) / "tokenizer.json"))
    data = Data(args.corpus, text, seed=99)

    result = {"cases": args.cases}
    if not args.no_kinds:
        result["accuracy"] = accuracies(model, text, data, args.cases, args.temperature)
        result["average"] = sum(result["accuracy"].values()) / len(result["accuracy"])
    result["two-digit additions"] = two_digit_sums(model, text, args.cases)
    result["two-digit comparisons"] = two_digit_comparisons(model, text, args.cases)
    rng = random.Random(13)
    prompts = [[BOS] + text.prompt(ask) for ask in ASKED + [stories.story(rng)[0] for _ in range(15)]]
    greedy = generate(model, prompts, 250)
    result["MTP acceptance, greedy stories"] = acceptance(model, prompts, greedy)
    sampled = generate(model, prompts, 250, 0.6, 0.95)
    result["MTP acceptance, sampled stories"] = acceptance(model, prompts, sampled)
    (result["held-out perplexity a token"], result["held-out perplexity a character"],
     result["MTP agreement, held-out text"], result["expert load"]) = held_out(model, text, args.corpus)
    result["stories"] = [{"asked": a, "said": text.plain(s)} for a, s in zip(ASKED, sampled)]
    result["greedy stories"] = [{"asked": a, "said": text.plain(s)} for a, s in zip(ASKED, greedy)]
    shown = json.dumps(result, indent=1, ensure_ascii=False)
    print(shown)
    if args.out:
        pathlib.Path(args.out).write_text(shown + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

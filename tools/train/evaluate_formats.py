"""The model card's figures for every weight format, all of them from the engine itself.

    python export.py --fp8-of ../../models/tiny --out ../../build/tiny-fp8
    python evaluate_formats.py --exo ../../build/release/exo --model ../../models/tiny --fp8-model ../../build/tiny-fp8 \\
        --corpus FOLDER [--cases 200] [--out formats.json]

Perplexity of the held-out book, KL divergence and agreement of the best token with bf16 (`exo perplexity --against`), and
the exercises asked one by one, greedily (`exo run` through a pipe, /reset after each question). The engine's fp8 keeps an FP8
checkpoint's own weights, so that column is measured on the model as such a checkpoint.
"""
import argparse
import json
import pathlib
import random
import subprocess
import tempfile

import corpus
import exercises

FORMATS = ["bf16", "int8", "int4", "fp8"]


def folder_of(args, fmt):
    return args.fp8_model if fmt == "fp8" else args.model


def perplexity(args, fmt, book):
    command = [args.exo, "perplexity", folder_of(args, fmt), "--format", fmt, "--file", book, "--context", "512",
               "--tokens", str(args.tokens), "--threads", str(args.threads), "--json"]
    if fmt != "bf16":
        command += ["--against", args.model, "--against-format", "bf16"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def accuracy(args, fmt):
    """kind -> share of right answers; the same questions for every format."""
    rng, asked = random.Random(99), []
    for kind in exercises.KINDS:
        asked += [(kind, *case) for case in exercises.unseen(rng, kind, args.cases)]
    lines = "".join(f"{ask}\n/reset\n" for _, ask, _, _ in asked)
    out = subprocess.run([args.exo, "run", folder_of(args, fmt), "--format", fmt, "--greedy", "--max-generate-tokens", "200",
                          "--threads", str(args.threads)], input=lines,
                         check=True, capture_output=True, text=True).stdout
    said = out.split("<think>")[1:]
    assert len(said) == len(asked), f"{len(asked)} questions, {len(said)} answers"
    right = dict.fromkeys(exercises.KINDS, 0)
    for (kind, _, _, answer), text in zip(asked, said):
        right[kind] += exercises.right(kind, text.partition("</think>")[2], answer)
    return {kind: n / args.cases for kind, n in right.items()}


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--exo", required=True)
    args.add_argument("--model", required=True)
    args.add_argument("--fp8-model", required=True, help="the same model as an FP8 checkpoint, by export.py")
    args.add_argument("--corpus", required=True)
    args.add_argument("--cases", type=int, default=200, help="of each kind")
    args.add_argument("--tokens", type=int, default=40000)
    args.add_argument("--threads", type=int, default=1, help="of exo; one wastes least on a busy machine")
    args.add_argument("--formats", nargs="*", default=FORMATS)
    args.add_argument("--out")
    args = args.parse_args()
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        book = pathlib.Path(folder) / "book.txt"
        book.write_text("\n\n\n".join("\n\n".join(p) for _, p in corpus.books(args.corpus, held_out=True)), encoding="utf-8")
        for fmt in args.formats:
            kinds = accuracy(args, fmt)
            result[fmt] = {"accuracy": kinds, "average": sum(kinds.values()) / len(kinds), "cases": args.cases,
                           **perplexity(args, fmt, book)}
            print(fmt, json.dumps(result[fmt]), flush=True)
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Draws the training curve of a log: python plot.py --log log.csv --out curve.png"""
import argparse
import csv

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--log", required=True)
    args.add_argument("--out", required=True)
    args = args.parse_args()
    with open(args.log, newline="") as f:
        rows = [r for r in csv.DictReader(f)]
    kinds = list(rows[0])[8:]

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for key, name in (("story_loss", "tales"), ("exercise_loss", "exercises"), ("mtp_loss", "MTP, all")):
        measured = [r for r in rows if float(r[key])]  # MTP has none where no step trained it
        left.plot([int(r["tokens"]) / 1e6 for r in measured], [float(r[key]) for r in measured], label=name)
    left.set(xlabel="million tokens", ylabel="loss", ylim=(0, 6))
    left.legend()
    checked = [r for r in rows if r[kinds[0]]]
    for i, kind in enumerate(kinds):
        right.plot([int(r["tokens"]) / 1e6 for r in checked], [float(r[kind]) for r in checked], label=kind, color=f"C{i}")
    right.set(xlabel="million tokens", ylabel="exact replies, unseen cases", ylim=(0, 1.02))
    right.legend(fontsize=6, ncol=2)
    fig.tight_layout()
    fig.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()

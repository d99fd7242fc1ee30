"""Trains the model; stops and goes on at any time from its checkpoint.

    python train.py --corpus FOLDER --tokenizer tokenizer.json --state state.pt --log log.csv --plan plan.json

Matrices are trained with Muon, the rest with AdamW. The learning rate warms up, stays, and falls linearly from the
plan's decay_from to its steps. Continue a finished training from the checkpoint taken before the fall.
"""
import argparse
import csv
import json
import os
import pathlib
import signal
import time

import torch

from data import Data, Text
from export import load
from model import CONFIG, Model, bf16, compile_parts

MTP_WEIGHT = 0.3
WIDTHS = {256: 16, 512: 3, 1024: 1}  # row lengths and how often
WARM_UP = 60
PLAN = dict(
    steps=1000000, decay_from=None,
    tokens=4096,     # a step
    exercises=0.6,   # their share of the rows
    turns=0.4,       # share of story turns in the rest
    mtp_every=2,     # steps between those that train MTP too
    weights={})      # of kinds of exercises, where not 1


def orthogonal(g):
    """Newton-Schulz iteration of Muon on [..., rows, cols]: all singular values go towards 1."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Optimiser:
    """Muon (update scaled to 0.2 rms, as in Moonlight) for the matrices inside, AdamW for the rest; float32 masters."""

    def __init__(self, model, lr, decay=0.05):
        self.lr, self.decay = lr, decay
        self.params = dict(model.named_parameters())
        outer = ("embed_tokens", "head", "gate.weight")
        self.muon = {n for n, p in self.params.items() if p.ndim > 1 and not n.endswith(outer)}
        self.master = {n: p.detach().float().clone() for n, p in self.params.items()}
        self.first = {n: torch.zeros_like(m) for n, m in self.master.items()}
        self.second = {n: torch.zeros_like(m) for n, m in self.master.items() if n not in self.muon}

    @torch.no_grad()
    def step(self, t, scale):
        lr = self.lr * scale
        for n, p in self.params.items():
            if p.grad is None:  # MTP's, in a step without it
                continue
            g, m, w = p.grad.float(), self.first[n], self.master[n]
            if n in self.muon:
                m.lerp_(g, 0.05)
                update = g.lerp(m, 0.95)
                if "gate_up" in n:  # two matrices stored as one
                    update = update.unflatten(-2, (2, -1))
                size = max(update.shape[-2:])
                update = orthogonal(update).float().view_as(w)
                w.mul_(1 - lr * self.decay).add_(update, alpha=-lr * 0.2 * size ** 0.5)
            else:
                v = self.second[n]
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.05)
                step = (m / (1 - 0.9 ** t)) / ((v / (1 - 0.95 ** t)).sqrt() + 1e-8)
                if w.ndim > 1:
                    w.mul_(1 - lr * self.decay)
                w.add_(step, alpha=-lr * 0.6)
            p.copy_(w)
            p.grad = None

    def state(self):
        return dict(master=self.master, first=self.first, second=self.second)

    def load(self, state):
        for mine, theirs in ((self.master, state["master"]), (self.first, state["first"]), (self.second, state["second"])):
            for n in mine:
                mine[n].copy_(theirs[n])
        with torch.no_grad():
            for n, p in self.params.items():
                p.copy_(self.master[n])


@torch.no_grad()
def accuracy(model, cases):
    """Share of replies whose every token is the model's first choice (so greedy generation gives just them)."""
    ids, wanted = cases
    model.eval()
    best = model.logits(model.hidden(ids[:, :-1])).argmax(-1)
    model.train()
    return ((best == ids[:, 1:]) | ~wanted[:, 1:]).all(1).float().mean().item()


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--corpus", required=True)
    args.add_argument("--tokenizer", required=True)
    args.add_argument("--state", required=True)
    args.add_argument("--log", required=True)
    args.add_argument("--start", help="a Hugging Face folder whose weights to begin with, where there is no state yet")
    args.add_argument("--plan", required=True, help="JSON, see PLAN; read again whenever it changes")
    args.add_argument("--lr", type=float, default=5e-3)
    args.add_argument("--balance", type=float, default=5e-3, help="speed of the routing bias")
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--every", type=int, default=200, help="steps between checks and checkpoints")
    args.add_argument("--pause", help="while this file exists, wait")
    args = args.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    compile_parts()
    model = (load(args.start).train() if args.start else bf16(Model())).to(device)
    optimiser = Optimiser(model, args.lr)
    step, seen, hours = 0, 0, 0.0
    if os.path.exists(args.state):
        state = torch.load(args.state, map_location=device)
        optimiser.load(state["optimiser"])
        for moe, bias in zip(model.moes(), state["bias"]):
            moe.bias.copy_(bias)
        step, seen, hours = state["step"], state["seen"], state["hours"]
    print(sum(p.numel() for p in model.parameters()), "parameters, from step", step, flush=True)

    text = Text(args.tokenizer)
    data = Data(args.corpus, text, seed=step + 17)
    tests = Data(args.corpus, text, seed=5)
    checks = {k: tests.padded([tests.exercise(k, test=True) for _ in range(40)], 16) for k in tests.kinds}
    new = not os.path.exists(args.log)
    log = open(args.log, "a", newline="")
    table = csv.writer(log)
    if new:
        table.writerow(["step", "tokens", "hours", "lr", "story_loss", "exercise_loss", "mtp_loss", "busiest", *checks])
    stop, save_now = [], []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    signal.signal(signal.SIGUSR1, lambda *_: save_now.append(1))

    def save():
        torch.save(dict(optimiser=optimiser.state(), bias=[m.bias for m in model.moes()], config=CONFIG,
                        step=step, seen=seen, hours=hours), args.state + ".new")
        os.replace(args.state + ".new", args.state)

    plan_file, plan, read = pathlib.Path(args.plan), dict(PLAN), None
    sums, busiest = {}, 0.0
    while step < plan["steps"] and not stop:
        if plan_file.stat().st_mtime != read:
            read = plan_file.stat().st_mtime
            plan = PLAN | json.loads(plan_file.read_text())
            data.weigh(plan["weights"])
            print("plan:", plan, flush=True)
        while args.pause and pathlib.Path(args.pause).exists() and not stop:
            time.sleep(2)
        began = time.time()
        t = data.rng.choices(*zip(*WIDTHS.items()))[0]
        rows = plan["tokens"] // t
        ids, wanted, mask = (x.to(device) for x in data.batch(rows, t, plan["exercises"], plan["turns"]))
        (loss, row), (mtp, _) = model.losses(ids, wanted, mask, (step + 1) % plan["mtp_every"] == 0)
        ((loss.sum() + MTP_WEIGHT * mtp.sum()) / len(loss)).backward()
        seen += rows * t
        exercise = row < round(rows * plan["exercises"])
        for key, values in (("exercise", loss[exercise]), ("story", loss[~exercise]), ("mtp", mtp)):
            total = sums.setdefault(key, [0.0, 0])
            total[0] += values.sum().item()
            total[1] += len(values)
        step += 1
        scale = min(1.0, step / WARM_UP)
        if plan["decay_from"] is not None and step > plan["decay_from"]:
            scale = (plan["steps"] - step) / (plan["steps"] - plan["decay_from"])
        optimiser.step(step, scale)
        for moe in model.moes():
            busiest += (moe.load.max() / moe.load.mean().clamp(min=1)).item() / len(model.moes())
            moe.balance(args.balance * scale)
        hours += (time.time() - began) / 3600
        often = min(args.every, 50)
        if step % often == 0 or stop:
            got = {k: a / max(b, 1) for k, (a, b) in sums.items()}
            full = step % args.every == 0
            marks = [round(accuracy(model, tuple(x.to(device) for x in c)), 3) for c in checks.values()] if full else []
            row = [step, seen, round(hours, 3), f"{args.lr * scale:.2e}", *(round(got.get(k, 0), 4) for k in ("story", "exercise", "mtp")),
                   round(busiest / often, 3), *marks]
            table.writerow(row)
            log.flush()
            print(*row, flush=True)
            sums, busiest = {}, 0.0
            if full:
                save()
        if save_now:
            save_now.clear()
            save()
    save()


if __name__ == "__main__":
    main()

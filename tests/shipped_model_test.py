"""The model that ships: it adds, in every place where exo finds it, and is what `exo run` runs when nothing is named."""
import os
import pathlib
import re
import shutil
import subprocess

from exo_testing import EXO, Home

SUMS = [(47, 38), (12, 30), (15, 27), (63, 24), (58, 67), (81, 9), (29, 44), (70, 16), (35, 35), (92, 88)]


def ask(home, question, *args):
    """(thoughts, answer)"""
    out, _ = home.exo("run", *args, "--greedy", "--prompt", question)
    thoughts, end, answer = out.removeprefix("<think>").partition("</think>")
    assert out.startswith("<think>") and end, f"{question}: no thoughts: {out!r}"
    return thoughts.strip(), answer.strip()


def sums(home):
    wrong = []
    for a, b in SUMS:
        thoughts, answer = ask(home, f"What is {a} + {b}?", "tiny")
        numbers = re.findall(r"\d+", answer)
        assert len(thoughts) > 10, f"{a} + {b}: thought only {thoughts!r}"
        if not numbers or numbers[-1] != str(a + b):
            wrong.append((a, b, answer))
    assert len(wrong) <= 1, f"nine of ten sums were to be right, wrong: {wrong}"
    assert (47, 38) not in [w[:2] for w in wrong], wrong


def default(home):
    assert ask(home, "What is 47 + 38?") == ask(home, "What is 47 + 38?", "tiny")


def installed(home):
    """Beside the binary, as `make install` lays them down, wherever the two are."""
    prefix = home.path / "prefix"
    (prefix / "bin").mkdir(parents=True)
    exo = shutil.copy(EXO, prefix / "bin" / "exo")
    run = [exo, "run", "--greedy", "--prompt", "What is 47 + 38?"]
    env = {**home.env, "EXO_HOME": str(home.path / "other")}
    missing = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert missing.returncode != 0 and "share/exo/models/tiny" in missing.stderr, missing
    source = pathlib.Path(os.path.abspath("models/tiny"))
    shutil.copytree(source, prefix / "share" / "exo" / "models" / "tiny")
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "85" in done.stdout.partition("</think>")[2], done


with Home() as home:
    for part in (sums, default, installed):
        part(home)
print("shipped model: ten sums, the default, beside an installed binary")

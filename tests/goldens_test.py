"""`exo logits` against the recorded outputs: logits, inner tensors and greedy tokens, whatever the chunk, the
instruction set and the threads."""
import json
import sys

from exo_testing import CASES, GOLDENS, Home, isas, max_difference, read_safetensors

LOGITS, INNER = 1e-3, 5e-4


def check_run(home, case, recorded, prompt, flags, greedy, inner):
    folder, out, ids = GOLDENS / case, home.path / "out.safetensors", home.path / "ids.json"
    ids.write_text(json.dumps(list(recorded[prompt + ".input_ids"][2])))
    args = ["logits", folder, "--tokens", ids, "--out", out, "--compute", "fp32", *flags]
    if prompt + ".positions" in recorded:
        args += ["--positions", ",".join(map(str, recorded[prompt + ".positions"][2]))]
    if greedy:
        args += ["--greedy", len(recorded[prompt + ".greedy.ids"][2])]
    if inner:
        args += ["--capture", "*"]
    out.unlink(missing_ok=True)
    home.exo(*args)
    got, where = read_safetensors(out), f"{case} {prompt} {flags}"
    names = ["logits"]
    if greedy:
        names += ["greedy.ids", "greedy.logits"]
    n_inner = 0
    if inner:
        known = {n[len(prompt) + 1:] for n in recorded if n.startswith(prompt + ".")}
        inner_names = sorted(known & set(got) - {"logits", "greedy.ids", "greedy.logits"})
        missing = sorted(n for n in known - set(got) if n.startswith("layers."))
        assert not missing, f"{where}: recorded and not captured: {missing}"
        n_inner, names = len(inner_names), names + inner_names
    for name in names:
        dtype, shape, values = recorded[f"{prompt}.{name}"]
        assert got[name][:2] == (dtype, shape), f"{where} {name}: {got[name][:2]}, recorded {dtype} {shape}"
        if dtype == "I32":
            assert got[name][2] == values, f"{where} {name}: integers differ"
        else:
            bound = LOGITS if name.endswith("logits") and not name.startswith("layers.") else INNER
            d = max_difference(got[name][2], values)
            assert d <= bound, f"{where} {name}: differs by {d}, bound {bound}"
    return n_inner


def main():
    quick = "--quick" in sys.argv
    n_runs = n_inner = 0
    with Home() as home:
        sets = isas(home)
        if quick:
            sets = sets[-1:]
        for case in CASES:
            recorded = read_safetensors(GOLDENS / case / "goldens.safetensors")
            prompts = sorted(n[:-len(".input_ids")] for n in recorded if n.endswith(".input_ids"))
            for prompt in prompts:
                greedy = prompt + ".greedy.ids" in recorded
                for isa in sets:
                    long = len(recorded[prompt + ".input_ids"][2]) > 64
                    if long and isa == "reference":
                        continue  # seconds each; the fast bodies are held to it elsewhere
                    for threads in (2,) if quick else (1, 2):
                        for chunk in (0, 512) if long else (0, 1, 3, 7):
                            flags = ["--isa", isa, "--threads", threads, "--chunk", chunk]
                            inner = chunk == 0 and f"{prompt}.embed" in recorded
                            n_inner += check_run(home, case, recorded, prompt, flags, greedy, inner)
                            n_runs += 1
        for case in ("v32_dsa", "v4"):
            out = home.path / "refused.safetensors"
            for command in (["logits", GOLDENS / case, "--tokens", "-", "--out", out],
                            ["run", GOLDENS / case, "--prompt", "Hi"], ["plan", GOLDENS / case]):
                text, err = home.exo(*command, stdin=b"[0, 1]", expect=1)
                assert text == "" and err.count("\n") == 1 and "not run by this build" in err, (text, err)
            assert not out.exists()
    print(f"{n_runs} runs of {len(CASES)} models on {', '.join(sets)}; {n_inner} inner tensors")


main()

"""Shapes and config fields that no published model has, against what transformers computed of them
(make_odd_models.py): every instruction set, in any chunks, on 1 to 3 threads. The fast paths of the formats are held to
the scalar bodies."""
import json
import math
import sys

from exo_testing import Home, isas, max_difference, read_safetensors

BOUND = 1e-3
NATIVE = {"bf16": 0.03, "int8": 0.05, "int4": 0.05}  # relative L2 of the logits from those of --isa reference


def relative_l2(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)) / sum(y * y for y in b))


n_runs = 0
with open("tests/odd_models.json", encoding="utf-8") as file:
    models = json.load(file)
with Home() as home:
    quick = "--quick" in sys.argv  # sanitized builds: once each
    sets = isas(home)[-1:] if quick else isas(home)
    out, config, ids = home.path / "out", home.path / "config.json", home.path / "ids.json"
    for model in models:
        folder = home.path / str(model["seed"])
        config.write_text(json.dumps(model["config"]))
        ids.write_text(json.dumps(model["ids"]))
        home.exo("random-checkpoint", folder, "--config", config, "--seed", model["seed"])
        last = str(len(model["ids"]) - 1)
        args = ["logits", folder, "--tokens", ids, "--out", out, "--positions", last, "--greedy", 2]
        scalar = {}
        for isa in sets:
            for threads, chunk in ((3, 7),) if quick else ((1, 0), (2, 1), (3, 7)):
                home.exo(*args, "--compute", "fp32", "--isa", isa, "--threads", threads, "--chunk", chunk)
                d = max_difference(read_safetensors(out)["logits"][2], model["logits"])
                assert d <= BOUND, f"{model['name']}: {isa}, {threads} threads, chunks of {chunk}: differs by {d}"
                n_runs += 1
            for format, bound in () if quick else NATIVE.items():
                home.exo(*args, "--format", format, "--isa", isa)
                got = read_safetensors(out)["logits"][2]
                d = relative_l2(got, scalar.setdefault(format, got))
                assert d <= bound, f"{model['name']}: {format} on {isa}: relative error {d}"
                n_runs += 1
print(f"{len(models)} models, {n_runs} runs on {', '.join(sets)}")

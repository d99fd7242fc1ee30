"""Exit codes, exo's flags and variables, and the small commands' contracts for scripts."""
import hashlib
import json
import math
import pathlib
import re
import signal
import subprocess
import sys

from exo_testing import CASES, EXO, GOLDENS, SHARED, Home, max_difference, read_safetensors

MODEL = GOLDENS / "v3_bf16"


def exit_codes(home):
    home.exo("--help")
    home.exo("run", "--help")
    out, _ = home.exo("version")
    assert re.fullmatch(r"exo \d+\.\d+\.\d+\n", out)
    for args in (["--nonsense"], ["nonsense"], ["run", "--nonsense"], ["logits", MODEL], ["run", "--top-k", "x", MODEL],
                 ["models"], ["run", MODEL, "--compute", "fp64"], ["--inference-engine", "torch", "run", MODEL]):
        out, err = home.exo(*args, expect=2)
        assert out == "" and "--help` shows what is expected" in err, (args, out, err)
    out, err = home.exo(expect=2)
    assert "exo run MODEL" in err
    _, err = home.exo("run", "no-such-model", "--prompt", "x", expect=1)
    assert "neither a known model nor a folder" in err
    _, err = home.exo("run", "deepsek-v3", "--prompt", "x", expect=1)
    assert "did you mean deepseek-v3?" in err
    _, err = home.exo("run", "deepseek-v2-lite", "--prompt", "x", "--overcommit", expect=1)
    assert "deepseek-ai/DeepSeek-V2-Lite" in err, err
    _, err = home.exo("run", "--prompt", "x", expect=1, env={"DEEPSEEK_V3_HF_MODEL": "no-such-model"})
    assert "no-such-model" in err
    default = {"DEEPSEEK_V3_HF_MODEL": str(MODEL)}
    home.exo("run", "--prompt", "x", "--max-generate-tokens", 1, env=default)
    home.exo("plan", env=default)
    home.exo("convert", env=default)
    home.exo("logits", "--tokens", "-", "--out", home.path / "default", stdin=b"[1]", env=default)
    for args in (["run", "--context", "-5"], ["run", "--seed", "-3"], ["logits", "--greedy", "x"],
                 ["bench", "--prefill", "4,x"]):
        _, err = home.exo(*args, expect=2)
        assert "expected a whole number from" in err, err
    # Ctrl-C, once the command is at work (it has answered).
    process = subprocess.Popen([EXO, "tokenize", SHARED / "facts/tokenizers/deepseek-v2"], env=home.env,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(b'{"text": "a"}\n')
    process.stdin.flush()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, process.returncode
    process.stdin.close()


def flags(home):
    run = ["run", MODEL, "--prompt", "Hi", "--max-generate-tokens", 3]
    plain, _ = home.exo(*run, "--greedy")
    assert home.exo("--inference-engine", "tinygrad", "--disable-tui", *run, "--greedy")[0] == plain
    assert home.exo(*run, "--greedy", env={"CLANG": "1"})[0] == plain
    assert home.exo(*run, "--default-temp", "0")[0] == plain
    assert home.exo(*run, "--temperature", "0", "--default-temp", "3")[0] == plain
    assert home.exo(*run, "--wait-for-peers", "0", "--greedy")[0] == plain
    _, err = home.exo("--inference-engine", "mlx", *run, expect=1)
    assert "Apple silicon" in err
    _, err = home.exo(*run, env={"CUDA": "1"}, expect=1)
    assert "CUDA=1" in err and "CLANG=1" in err
    assert home.exo(*run, "--greedy", env={"CUDA": "0"})[0] == plain
    for extra, word in [(["--wait-for-peers", "2"], "no cluster yet"), (["--discovery-module", "udp"], "no cluster"),
                        (["--default-temp", "-1"], "--default-temp")]:
        _, err = home.exo(*run, *extra, expect=1)
        assert word in err, err
    for extra in (["--node-id", "a"], ["--node-host", "::1"], ["--node-port", "1"], ["--listen-port", "2"],
                  ["--broadcast-port", "3"], ["--chatgpt-api-port", "52415"]):
        out, err = home.exo(*run, "--greedy", *extra)
        assert out == plain and extra[0] + " has no effect here" in err, err
        _, err = home.exo(*extra, expect=2)
        assert extra[0] in err and "node" in err, err
    home.exo("--chatgpt-api-port", "99999", expect=2)
    for variable, top in (("DEBUG", 9), ("TINYGRAD_DEBUG", 6)):
        for level in range(top + 1):
            out, err = home.exo(*run, "--greedy", env={variable: str(level)})
            assert out == plain, (variable, level, out)
            for words, least in (("loaded", 1), ("in the cache", 2), ("prompt tokens 0 to", 2), ("token 1 of the answer", 4)):
                assert (words in err) == (level >= least), (variable, level, words, err)
        _, err = home.exo(*run, env={variable: str(top + 1)}, expect=2)
        assert f"{variable}={top + 1}" in err
        home.exo(*run, env={variable: "x"}, expect=2)
    _, err = home.exo(*run, env={"DEBUG": "1", "TINYGRAD_DEBUG": "4"})
    assert "token 1 of the answer" in err, err  # the higher counts
    dummy = ["--inference-engine", "dummy"]
    out, _ = home.exo("run", *dummy, "--prompt", "one two three", "--max-generate-tokens", 2)
    assert out == "dummy: one \n"
    assert home.exo("run", *dummy, "--prompt", "x", env={"CUDA": "1"})[0] == "dummy: x\n"
    for command in (["logits", MODEL, "--tokens", "-", "--out", home.path / "x"], ["bench", MODEL], ["verify", MODEL],
                    ["perplexity", MODEL, "--file", "README.md"]):
        _, err = home.exo(*command, *dummy, stdin=b"[1]", expect=1)
        assert "only `exo run` can" in err, err
    # The answer is shown as it is with the prompt given, the system text is part of what the model reads.
    text = json.loads(home.exo("run", "tiny", "--prompt", "Hi", "--greedy", "--max-generate-tokens", 1, "--json")[0])
    more = json.loads(home.exo("run", "tiny", "--prompt", "Hi", "--greedy", "--max-generate-tokens", 1, "--json",
                               "--system-prompt", "You are terse.")[0])
    assert more["prompt_tokens"] > text["prompt_tokens"] + 2, (text, more)
    elsewhere = home.path / "elsewhere"
    folder, _ = home.exo("convert", MODEL, env={"DEEPSEEK_V3_CACHE": str(elsewhere)})
    assert folder.startswith(str(elsewhere))
    table = open("docs/flags.md").read()
    # One table: name, meaning, default, where it takes effect.
    table = "\n".join(line for line in table.split("\n") if line.startswith("| `") and line.count("|") == 5)
    for name in ("--inference-engine", "--wait-for-peers", "--discovery-module", "--node-id", "--node-host",
                 "--node-port", "--listen-port", "--broadcast-port", "--chatgpt-api-port", "--default-temp",
                 "--max-generate-tokens", "--system-prompt", "--disable-tui", "`DEBUG`", "`TINYGRAD_DEBUG`",
                 "`HF_HOME`", "`HF_ENDPOINT`", "`HF_TOKEN`", "`EXO_HOME`", "`DEEPSEEK_V3_CACHE`",
                 "`DEEPSEEK_V3_HF_MODEL`", "`CUDA`", "`CLANG`"):
        assert name in table, f"docs/flags.md: {name} is missing"


def sampling(home):
    run = ["run", MODEL, "--prompt", "Hi", "--max-generate-tokens", 12, "--ignore-eos"]
    warm = run + ["--temperature", "1", "--seed", "5"]
    first = json.loads(home.exo(*warm, "--json")[0])
    assert json.loads(home.exo(*warm, "--json", "--threads", 1)[0])["text"] == first["text"]
    assert first["generated_tokens"] == 12 and first["finish_reason"] == "token limit"
    assert json.loads(home.exo(*run, "--json", "--temperature", "1", "--seed", "6")[0])["text"] != first["text"]
    greedy = json.loads(home.exo(*run, "--json", "--greedy")[0])["text"]
    assert json.loads(home.exo(*run, "--json", "--temperature", "2", "--top-k", "1")[0])["text"] == greedy
    assert json.loads(home.exo(*run, "--json", "--temperature", "2", "--min-p", "1")[0])["text"] == greedy
    typical = json.loads(home.exo(*warm, "--json", "--typical-p", "0.1")[0])["text"]
    assert typical != first["text"] and typical == json.loads(home.exo(*warm, "--json", "--typical-p", "0.1")[0])["text"]
    # A stop string ends the answer and no part of it is shown.
    stop = greedy[4:7]
    stopped = json.loads(home.exo(*run, "--json", "--greedy", "--stop", stop)[0])
    assert stopped["text"] == greedy[:greedy.index(stop)] and stopped["finish_reason"] == "stop string"
    assert home.exo(*run, "--greedy", "--stop", stop)[0] == greedy[:greedy.index(stop)] + "\n"
    # One that is begun and not ended is text after all.
    assert home.exo(*run, "--greedy", "--stop", greedy[-3:] + "\n\n!")[0] == greedy + "\n"
    assert json.loads(home.exo(*run, "--json", "--greedy", "--logit-bias", "65=100")[0])["text"] == "A" * 12
    for bad in (["--top-p", "0"], ["--temperature", "-1"], ["--min-p", "2"], ["--logit-bias", "x"], ["--typical-p", "0"],
                ["--repetition-penalty", "0"], ["--stop", ""]):
        home.exo(*run, *bad, expect=1)


def plans(home):
    for name, params, with_mtp in (("deepseek-v3", 671026419200, 684489845504),
                                   ("deepseek-v2-lite", 15706484224, 15706484224)):
        plan = json.loads(home.exo("plan", name, "--json")[0])
        assert (plan["parameters"], plan["parameters_with_mtp"]) == (params, with_mtp), plan["parameters"]
        assert {"weight_bytes", "kv_bytes_per_token", "stages"} <= set(plan)
    text, _ = home.exo("plan", "kimi-k2-instruct")
    assert "does not fit" in text
    _, err = home.exo("plan", "deepseek-v3-base", expect=1)
    assert "not" in err
    home.exo("plan", MODEL, "--format", "int4,attention=int8")
    _, err = home.exo("plan", MODEL, "--format", "int3", expect=1)
    assert "int3" in err


def models(home):
    listed = json.loads(home.exo("models", "list", "--json", "--memory", "128")[0])
    by_id = {m["id"]: m for m in listed["models"]}
    v3 = by_id["deepseek-v3"]
    fp8 = next(m for m in v3["memory"] if m["format"] == "fp8")
    assert v3["runnable"] and fp8["machines"] == math.ceil(fp8["bytes"] / 128e9)
    info = json.loads(home.exo("models", "info", "deepseek-v3", "--json", "--memory", "128")[0])
    assert info["memory"] == v3["memory"] and "aiconfigurator" in info["config_source"] and "README" in info["source"]
    text, _ = home.exo("models", "info", "deepseek-v3-0324", "--memory", "128")
    assert f"fp8 675.27 GB {fp8['machines']} machines" in text and "embedded: deepseek-v3's" in text, text
    text, _ = home.exo("models", "list")
    for m in by_id.values():
        name = m["id"] if m["runnable"] else f"  {m['id']}"  # those that aren't: a list of their own, at the end
        assert re.search(rf"^{re.escape(name)} ", text, re.M), m["id"]
    assert "distill" not in text
    home.exo("models", "list", "--memory", "0", expect=2)
    assert not by_id["deepseek-v3-base"]["runnable"]
    known = {m["id"]: m for m in json.loads((SHARED / "facts/models.json").read_text())["models"]}
    covered = [m for m in known.values() if m.get("model_type") in ("deepseek_v2", "deepseek_v3", "kimi_k2")
               and m.get("config_status") != "partial"]
    for m in covered:
        assert by_id[m["id"]]["runnable"], m["id"]
        assert by_id[m["id"]]["context"] == m["max_position_embeddings"], m["id"]
        computed = m.get("params_exact_computed")
        if computed:
            plan = json.loads(home.exo("plan", m["id"], "--json")[0])
            assert plan["parameters"] == (computed if isinstance(computed, int) else computed["main_model"]), m["id"]
    home.exo("convert", MODEL)
    home.exo("convert", MODEL, "--format", "int8")
    text, _ = home.exo("models", "info", MODEL)
    assert "cache bf16" in text and "cache int8" in text
    _, err = home.exo("models", "rm", MODEL, expect=1)
    assert "--yes" in err
    home.exo("verify", MODEL)
    assert list((home.path / "home/cache/verify").iterdir())
    home.exo("models", "rm", MODEL, "--yes")
    assert not list((home.path / "home/cache/verify").iterdir()), "the test data of a removed cache is left"
    home.exo("models", "rm", MODEL, "--yes", expect=1)
    assert (MODEL / "model.safetensors.index.json").exists()


def texts(home):
    for name, cases in (("deepseek-v3", "cases.jsonl"), ("deepseek-v2", "cases-deepseek-v2.jsonl")):
        lines = [json.loads(line) for line in open(GOLDENS / "tokenizer" / cases, encoding="utf-8")]
        given = "".join(json.dumps({"text": line["text"]}) + "\n" for line in lines)
        out, _ = home.exo("tokenize", SHARED / "facts/tokenizers" / name, stdin=given.encode())
        assert [json.loads(line)["ids"] for line in out.split("\n")[:-1]] == [line["ids"] for line in lines]
        back, _ = home.exo("tokenize", SHARED / "facts/tokenizers" / name, "--decode", stdin=out.encode())
        assert [json.loads(line)["text"] for line in back.split("\n")[:-1]] == [line["text"] for line in lines]
    # By name the prompt alone; from a folder with a tokenizer its ids too.
    cases = [json.loads(line) for line in open(GOLDENS / "chat/cases.jsonl", encoding="utf-8")]
    names = {case["template"] for case in cases}
    assert len(names) == 5, names
    for name in names:
        mine = [case for case in cases if case["template"] == name]
        given = "".join(json.dumps({k: case[k] for k in ("messages", "tools", "add_generation_prompt", "kwargs")}) + "\n"
                        for case in mine)
        out, _ = home.exo("render", name, stdin=given.encode())
        assert [json.loads(line) for line in out.split("\n")[:-1]] == [{"prompt": case["prompt"]} for case in mine], name
        folder = SHARED / "facts/tokenizers" / name.removesuffix("-0528")
        out, _ = home.exo("render", folder, "--chat-format", name, stdin=given.encode())
        assert [json.loads(line) for line in out.split("\n")[:-1]] == \
            [{"prompt": case["prompt"], "ids": case["ids"]} for case in mine], name


def perplexity(home):
    text = home.path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 8)
    one = json.loads(home.exo("perplexity", MODEL, "--file", text, "--context", 64, "--compute", "fp32", "--json")[0])
    assert one["n_tokens"] == len(text.read_text()) and abs(math.exp(one["mean_nll"]) / one["perplexity"] - 1) < 1e-9
    # The definition, from logits: windows of 64 tokens, each begun with BOS (id 0), which isn't scored.
    ids, nll = list(text.read_bytes()), 0.0
    for begin in range(0, len(ids), 63):
        window = [0] + ids[begin:begin + 63]
        home.exo("logits", MODEL, "--tokens", "-", "--out", home.path / "l", "--compute", "fp32",
                 stdin=json.dumps(window).encode())
        _, (n, vocab), values = read_safetensors(home.path / "l")["logits"]
        for i in range(n - 1):
            row = values[i * vocab:(i + 1) * vocab]
            best = max(row)
            nll += best + math.log(sum(math.exp(v - best) for v in row)) - row[window[i + 1]]
    assert abs(nll / len(ids) - one["mean_nll"]) < 1e-5, (nll / len(ids), one)
    # What transformers computes (tools/perplexity.py), of a text that ships with these tests.
    record = json.loads(open("tests/perplexity.json", encoding="utf-8").read())
    assert hashlib.sha256(open("tests/corpus.txt", "rb").read()).hexdigest() == record["text_sha256"]
    # A sanitized build takes minutes for each: there one model stands for all.
    models = {"v3_bf16": record["models"]["v3_bf16"]} if "--quick" in sys.argv else record["models"]
    for name, theirs in models.items():
        folder = pathlib.Path("models/tiny") if name == "tiny" else GOLDENS / name
        weights = sorted([*folder.glob("model*.safetensors"), *folder.glob("tokenizer.json")])
        digest = hashlib.sha256(b"".join(p.read_bytes() for p in weights)).hexdigest()
        if digest != theirs["weights_sha256"]:
            assert name == "tiny", f"{folder}: not the weights that tests/perplexity.json was made of"
            # It is trained on; the goldens never change.
            print(f"tiny has other weights than tests/perplexity.json: record them with tools/perplexity.py {folder} "
                  f"--file tests/corpus.txt --context {record['context']} --record tests/perplexity.json")
            continue
        ours = json.loads(home.exo("perplexity", folder, "--file", "tests/corpus.txt", "--context", record["context"],
                                   "--compute", "fp32", "--json")[0])
        assert ours["n_tokens"] == theirs["n_tokens"], (name, ours, theirs)
        assert abs(ours["perplexity"] / theirs["perplexity"] - 1) < 0.005, (name, ours, theirs)
    same = json.loads(home.exo("perplexity", MODEL, "--file", text, "--context", 64, "--compute", "fp32", "--json",
                               "--against", MODEL)[0])
    assert abs(same["mean_kl"]) < 1e-9 and same["top1_agreement"] == 1
    other = json.loads(home.exo("perplexity", MODEL, "--file", text, "--context", 64, "--json", "--format", "int4",
                                "--against-format", "bf16")[0])
    assert other["mean_kl"] > 0 and other["top1_agreement"] <= 1
    home.exo("perplexity", MODEL, "--file", text, "--against", GOLDENS / "moonlight", expect=1)


def verify(home):
    for case in CASES:
        out, _ = home.exo("verify", GOLDENS / case, "--report", home.path / "report.txt")
        assert "EQUAL" in out and (home.path / "report.txt").read_text() == out
    # Inputs and outputs of each submodule are left in $DEEPSEEK_V3_CACHE: those of one are the next one's.
    elsewhere = home.path / "verified"
    _, err = home.exo("verify", MODEL, env={"DEEPSEEK_V3_CACHE": str(elsewhere)})
    (folder,) = (elsewhere / "verify").glob("*/p0")
    assert str(folder.parent) in err, err
    recorded = read_safetensors(MODEL / "goldens.safetensors")
    files = {p.name.removesuffix(".safetensors"): read_safetensors(p) for p in folder.iterdir()}
    layers = [f"layers.{i}" for i in range(4)]
    assert set(files) == {"embed", "final_norm", "lm_head", *layers, *(f"{x}.{part}" for x in layers
                                                                     for part in ("self_attn", "mlp"))}, set(files)
    assert files["embed"]["input"] == recorded["p0.input_ids"]
    before = "embed"
    for name in (*layers, "final_norm", "lm_head"):
        assert files[name]["input"] == files[before]["output"], name
        before = name
    assert files["lm_head"]["positions"][2].tolist() == list(range(24))
    for name, file in files.items():
        theirs = recorded[{"lm_head": "p0.logits"}.get(name, f"p0.{name}" if "." not in name else f"p0.{name}.out")]
        assert file["reference.output"] == theirs and file["output"][1] == theirs[1], name
        assert max_difference(file["output"][2], theirs[2]) < 1e-3, name
    assert "layers.3.self_attn.latent" in files["layers.3.self_attn"] and "positions" in files["layers.3.self_attn"]
    assert files["layers.1.mlp"]["input"] == files["layers.1"]["layers.1.post_attention_layernorm"]
    # A reference of other numbers is told apart, at the first tensor that differs.
    import struct
    data = bytearray((MODEL / "goldens.safetensors").read_bytes())
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    at = 8 + n + header["p0.layers.1.self_attn.latent"]["data_offsets"][0]
    data[at:at + 4] = struct.pack("<f", 99.0)
    (home.path / "wrong.safetensors").write_bytes(data)
    out, _ = home.exo("verify", MODEL, "--reference", home.path / "wrong.safetensors", "--json", expect=1)
    assert json.loads(out)["first_difference"]["tensor"] == "layers.1.self_attn.latent"
    _, err = home.exo("verify", GOLDENS / "v2_lite", "--reference", MODEL / "goldens.safetensors", expect=1)
    _, err = home.exo("verify", MODEL, "--reference", GOLDENS / "README.md", expect=1)
    assert "README.md" in err


def memory(home):
    """A model too big for this machine: an estimate before anything is loaded."""
    folder = home.path / "big"
    folder.mkdir()
    (folder / "config.json").write_text((SHARED / "facts/configs/deepseek-v3.json").read_text())
    (folder / "model.safetensors").write_bytes(b"")
    _, err = home.exo("run", folder, "--prompt", "Hi", expect=1)
    assert "not enough memory" in err and "No format of it would fit" in err and "--overcommit" in err, err
    n = int(re.search(r"--wait-for-peers (\d+) machines", err).group(1))
    assert n >= 2, err
    # Too big for what is free by half: the formats that would fit are named.
    free = int(re.search(r"MemAvailable: *(\d+)", open("/proc/meminfo").read()).group(1)) * 1024
    config = json.loads((SHARED / "facts/configs/deepseek-v2-lite.json").read_text())
    lite = next(m for m in json.loads(home.exo("models", "info", "deepseek-v2-lite", "--json")[0])["memory"]
                if m["format"] == "bf16")["bytes"]
    config["num_hidden_layers"] = max(2, round(27 * 1.7 * free / lite))
    (folder / "config.json").write_text(json.dumps(config))
    _, err = home.exo("run", folder, "--prompt", "Hi", expect=1)
    assert "not enough memory" in err and re.search(r"These would fit: .*--format int4 \(", err), err


with Home() as home:
    for part in (exit_codes, flags, sampling, plans, models, texts, perplexity, verify, memory):
        part(home)
        print("ok", part.__name__, flush=True)

"""Hostile input ends in one clear message, or is answered; nothing crashes and no half file is left."""
import json
import math
import os
import random
import re
import shutil
import struct
import time

from exo_testing import GOLDENS, SHARED, Home

MODEL = GOLDENS / "v3_bf16"


def prompts(home):
    random.seed(1)
    file = home.path / "prompt"
    # Binary bytes and NULs: answered (bytes are this model's tokens), and said.
    file.write_bytes(bytes(random.randrange(256) for _ in range(3000)))
    _, err = home.exo("run", MODEL, "--prompt-file", file, "--max-generate-tokens", 2, expect=None)
    assert home.returncode in (0, 1) and "not UTF-8" in err, err
    file.write_bytes(b"a\0b\0" * 20)
    home.exo("run", MODEL, "--prompt-file", file, "--max-generate-tokens", 2)
    # 10 MB: counted and refused, naming the context.
    file.write_bytes(b"word " * 2_000_000)
    begin = time.time()
    out, err = home.exo("run", MODEL, "--prompt-file", file, expect=1)
    assert out == "" and "the prompt has 10000001 tokens and the context holds 2560" in err, err
    assert time.time() - begin < 60
    # The same with a real tokenizer, whose ids this model doesn't have.
    file.write_bytes(b"a" * 1_000_000)
    _, err = home.exo("run", MODEL, "--prompt-file", file, "--tokenizer", SHARED / "facts/tokenizers/deepseek-v3",
                      "--raw", expect=1)
    assert "tokens and the context holds" in err, err
    _, err = home.exo("run", MODEL, "--prompt", "Hello there", "--tokenizer",
                      SHARED / "facts/tokenizers/deepseek-v3", "--raw", expect=1)
    assert "vocabulary has 512" in err, err
    _, err = home.exo("run", MODEL, "--prompt", "", expect=1)
    assert "the prompt is empty" in err, err
    _, err = home.exo("run", MODEL, "--prompt-file", home.path / "none", expect=1)
    assert "none" in err
    # A context that overflows in mid-answer: what there is stays, and it is said.
    out, err = home.exo("run", MODEL, "--prompt", "x" * 60, "--context", 64, "--greedy", "--ignore-eos")
    assert out and "the context is full" in err, err
    _, err = home.exo("run", MODEL, "--prompt", "hi", "--context", 100000, expect=1)
    assert "positions end at 2560" in err, err


def json_lines(home):
    tokenizer = SHARED / "facts/tokenizers/deepseek-v3"
    for line, words in [(b'{"text": "\\ud800"}', "stdin line 1"), (b'{"text": 5}', "text"), (b"{", "stdin line 1"),
                        (b'{"text": "a", "text": "b"}', "twice"), (b"[" * 100000, "stdin line 1"),
                        (b'{"text": "\xff\xfe"}', "stdin line 1"), (b'{"txt": "a"}', "text")]:
        out, err = home.exo("tokenize", tokenizer, stdin=line + b"\n", expect=1)
        assert out == "" and words in err and len(err) < 1000, (line[:40], err[:300])
    out, _ = home.exo("tokenize", tokenizer, stdin=b'\n{"text": "a\\u0000b \\ud83d\\ude00"}\n   \n')
    assert out.count("\n") == 1 and json.loads(out)["ids"]
    back, _ = home.exo("tokenize", tokenizer, "--decode", stdin=out.encode())
    assert json.loads(back)["text"] == "a\0b \U0001f600"
    for line in (b'{"ids": [-1]}', b'{"ids": [1e99]}', b'{"ids": "x"}', b'{"ids": [4000000000]}'):
        home.exo("tokenize", tokenizer, "--decode", stdin=line, expect=1)
    for line in (b'{"messages": [{"role": "user", "content": "\\udc00"}]}', b'{"messages": 1}', b'{}',
                 b'{"messages": [{"role": "robot", "content": ""}]}'):
        _, err = home.exo("render", "deepseek-r1", stdin=line, expect=1)
        assert "stdin line 1" in err, err


def token_files(home):
    out = home.path / "out.safetensors"
    for text in (b"", b"{}", b"[]", b"[1.5]", b"[-1]", b"[99999999999]", b"[512]", b'["a"]', b"[1" * 5000,
                 b"\0\0\0\0", b"[0, 1] x"):
        home.exo("logits", MODEL, "--tokens", "-", "--out", out, stdin=text, expect=1)
        assert not out.exists(), text
    _, err = home.exo("logits", MODEL, "--tokens", "-", "--out", out, stdin=b"[512]", expect=1)
    assert "ids 0 to 511" in err, err
    _, err = home.exo("logits", MODEL, "--tokens", "-", "--out", out, "--positions", "0,9", stdin=b"[1, 2]", expect=1)
    assert "expected 0 to 1" in err, err
    for positions in ("", "-1", "1.5", "x", "99999999999999999999"):
        _, err = home.exo("logits", MODEL, "--tokens", "-", "--out", out, "--positions", positions, stdin=b"[1, 2]",
                          expect=2)
        assert "expected a whole number from 0 on" in err, err
    _, err = home.exo("logits", MODEL, "--tokens", "-", "--out", out, "--capture", "layers.*", "--capture", "layer.0",
                      stdin=b"[1, 2]", expect=1)
    assert "--capture 'layer.0': no inner tensor" in err and not out.exists(), err
    _, err = home.exo("logits", MODEL, "--tokens", "-", "--out", out, "--capture", "*.probs", "--chunk", 1,
                      stdin=b"[1, 2]", expect=1)
    assert "--chunk 0" in err, err
    _, err = home.exo("logits", MODEL, "--tokens", "-", "--out", home.path / "no" / "such" / "out", stdin=b"[1]",
                      expect=1)
    assert "no/such" in err and sorted(home.path.glob("*.tmp*")) == []


def checkpoints(home):
    folder = home.path / "model"
    shutil.copytree(MODEL, folder)
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    data = shard.read_bytes()
    for broken, what in [(data[: len(data) // 2], "truncated"), (b"", "empty"), (b"\xff" * 64, "noise"),
                         (data[:8] + b"{" * 100 + data[108:], "header")]:
        shard.write_bytes(broken)
        _, err = home.exo("run", folder, "--prompt", "Hi", expect=1)
        assert shard.name in err, (what, err)
    shard.unlink()
    _, err = home.exo("run", folder, "--prompt", "Hi", expect=1)
    assert shard.name in err, err
    shard.write_bytes(data)
    config = json.loads((folder / "config.json").read_text())
    for change, word in [({"hidden_size": -1}, "hidden_size"), ({"hidden_size": "x"}, "hidden_size"),
                         ({"num_hidden_layers": 10**12}, "num_hidden_layers"), ({"model_type": "gpt2"}, "deepseek_v3"),
                         ({"kv_lora_rank": None}, "kv_lora_rank"), ({"n_group": 3}, "n_group"),
                         ({"hidden_size": 256}, "shape")]:
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        _, err = home.exo("run", folder, "--prompt", "Hi", expect=1)
        assert word in err or "expected" in err, (change, err)
    for text in ("", "[]", "{", "null", '{"model_type": 3}'):
        (folder / "config.json").write_text(text)
        home.exo("run", folder, "--prompt", "Hi", expect=1)
        home.exo("plan", folder, expect=1)
    (folder / "config.json").unlink()
    _, err = home.exo("run", folder, "--prompt", "Hi", expect=1)
    assert "model" in err


def full_disk(home):
    """A conversion that the disk can't hold: counted before anything is written. The checkpoint is terabytes of a
    sparse file."""
    folder, vocab, hidden = home.path / "huge", 1 << 24, 65536
    needed = 2 * 2 * vocab * hidden  # embedding and head in bf16
    if shutil.disk_usage(home.path).free > needed:
        print("full_disk: this disk is too large for it")
        return
    folder.mkdir()
    config = json.loads((MODEL / "config.json").read_text())
    config.update(vocab_size=vocab, hidden_size=hidden, num_hidden_layers=1, num_nextn_predict_layers=0,
                  n_routed_experts=0, q_lora_rank=None, intermediate_size=8)
    (folder / "config.json").write_text(json.dumps(config))
    n_heads, rope, kv = config["num_attention_heads"], config["qk_rope_head_dim"], config["kv_lora_rank"]
    nope, v = config["qk_nope_head_dim"], config["v_head_dim"]
    attn, mlp = "model.layers.0.self_attn.", "model.layers.0.mlp."
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "lm_head.weight": [vocab, hidden],
              "model.norm.weight": [hidden], "model.layers.0.input_layernorm.weight": [hidden],
              "model.layers.0.post_attention_layernorm.weight": [hidden],
              attn + "q_proj.weight": [n_heads * (nope + rope), hidden],
              attn + "kv_a_proj_with_mqa.weight": [kv + rope, hidden], attn + "kv_a_layernorm.weight": [kv],
              attn + "kv_b_proj.weight": [n_heads * (nope + v), kv], attn + "o_proj.weight": [hidden, n_heads * v],
              mlp + "gate_proj.weight": [8, hidden], mlp + "up_proj.weight": [8, hidden],
              mlp + "down_proj.weight": [hidden, 8]}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    _, err = home.exo("convert", folder, expect=1)
    assert re.search(r"needs [\d.]+ GB more, [\d.]+ GB are free: [\d.]+ GB are missing", err), err
    assert not [p for p in (home.path / "home/cache").glob("*/source.json") if str(folder) in p.read_text()]
    _, err = home.exo("convert", folder, expect=1)
    assert "there is no weight cache of format bf16 for it yet" in err, err
    shutil.rmtree(folder)


def closed_pipes(home):
    """A reader that goes away ends the program, without a crash."""
    import subprocess
    from exo_testing import EXO
    read_end, write_end = os.pipe()
    process = subprocess.Popen([EXO, "run", str(MODEL), "--prompt", "Hi", "--ignore-eos"], stdout=write_end,
                               stderr=subprocess.DEVNULL, env=home.env)
    os.close(write_end)
    os.close(read_end)
    assert process.wait(120) in (1, -13)


with Home() as home:
    home.exo("convert", MODEL)
    for part in (prompts, json_lines, token_files, checkpoints, full_disk, closed_pipes):
        part(home)
print("hostile input: refused in words, or answered")

"""A prompt of 163,838 tokens and three generated ones, to the last position of V2's and V3's context, on a tiny random
model: every position computed, and the process's peak memory is what `exo plan` said."""
import json
import math
import os
import random

from exo_testing import EXO, GOLDENS, Home, read_safetensors

PROGRAM_BYTES = 16e6  # the binary, its libraries and stacks, the tokens: 7 MB were seen

with Home() as home:
    config = json.loads((GOLDENS / "v2_lite/config.json").read_text())
    assert config["max_position_embeddings"] == 163840
    config.update(hidden_size=32, num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1, vocab_size=256,
                  qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, kv_lora_rank=96, intermediate_size=32)
    (home.path / "config.json").write_text(json.dumps(config))
    model, out, ids = home.path / "model", home.path / "out.safetensors", home.path / "ids.json"
    home.exo("random-checkpoint", model, "--config", home.path / "config.json")
    random.seed(4)
    ids.write_text(json.dumps([random.randrange(256) for _ in range(163838)]))
    size = ["--context", "163840", "--chunk", "2048"]
    plan = json.loads(home.exo("plan", model, *size, "--json")[0])
    home.exo("convert", model)

    args = [EXO, "logits", str(model), "--tokens", str(ids), "--out", str(out), "--positions", "163837", *size]
    process = os.posix_spawn(EXO, [*args, "--greedy", "3"], home.env)
    _, status, usage = os.wait4(process, 0)
    assert status == 0, status
    tensors = read_safetensors(out)
    assert tensors["greedy.logits"][1] == [3, 256] and all(map(math.isfinite, tensors["greedy.logits"][2]))
    planned, peak = plan["total_bytes"], usage.ru_maxrss * 1024
    assert planned <= peak <= planned + PROGRAM_BYTES, (planned, peak)
    _, err = home.exo(*args[1:-4], "--greedy", "4", expect=1)
    assert "163841" in err and "163840" in err, err
print(f"163840 positions: planned {planned / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB")

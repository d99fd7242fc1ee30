"""The three stages as three processes, the checkpoint deleted after the first: the same logits."""
import json
import pathlib
import shutil

from exo_testing import GOLDENS, Home, max_difference, read_safetensors


def logits(home, model, *flags):
    out = home.path / "out.safetensors"
    home.exo("logits", model, "--tokens", "-", "--out", out, "--greedy", 4, "--compute", "fp32", *flags, stdin=b"[0, 5, 9, 100]")
    return read_safetensors(out)


with Home() as home:
    folder = home.path / "model"
    shutil.copytree(GOLDENS / "v3_bf16", folder, ignore=shutil.ignore_patterns("goldens*", "meta*"))
    before = logits(home, folder)
    shutil.rmtree(home.path / "home")

    cache, err = home.exo("convert", folder)
    assert "converting" in err and "peak memory" in err, err
    plan, _ = home.exo("plan", folder, "--json", "--context", 64, "--compute", "fp32")
    (home.path / "plan.json").write_text(plan)
    shutil.rmtree(folder)

    assert logits(home, folder) == before, "by the checkpoint's old path"
    assert logits(home, cache.strip()) == before, "by the cache's folder"
    # The plan has one row of logits a forward, so the prompt runs in other chunks.
    planned = logits(home, folder, "--plan", home.path / "plan.json")
    assert planned["greedy.ids"] == before["greedy.ids"], "by a plan"
    assert max_difference(planned["logits"][2], before["logits"][2]) < 1e-3, "by a plan"
    text, _ = home.exo("run", folder, "--plan", home.path / "plan.json", "--prompt", "Hi", "--greedy",
                       "--max-generate-tokens", 4)
    assert text

    # A flag may repeat what the plan says, and not say anything else.
    run = ["run", folder, "--plan", home.path / "plan.json", "--prompt", "Hi", "--max-generate-tokens", 1]
    home.exo(*run, "--compute", "fp32", "--format", "bf16", "--context", 64, "--chunk", 512)
    for flags, what in ((["--format", "int8"], "format is bf16, the command line says int8"),
                        (["--compute", "native"], "fp32_compute is true"), (["--context", 65], "max_context_tokens"),
                        (["--chunk", 3], "max_batch_tokens"), (["--threads", 77], "n_threads")):
        _, err = home.exo(*run, *flags, expect=1)
        assert what in err, err

    # Another model's plan, one that was changed, and one too small for the prompt are refused.
    other, _ = home.exo("plan", GOLDENS / "v2_lite", "--json")
    (home.path / "other.json").write_text(other)
    _, err = home.exo("logits", folder, "--tokens", "-", "--out", home.path / "x", "--plan", home.path / "other.json",
                      stdin=b"[0]", expect=1)
    assert "another model's config.json" in err, err
    changed = json.loads(plan)
    changed["stages"][0]["prefill"]["layers"][0]["attention"]["softmax_scale"] = 2.0
    (home.path / "changed.json").write_text(json.dumps(changed))
    _, err = home.exo("run", folder, "--prompt", "Hi", "--plan", home.path / "changed.json", expect=1)
    assert "softmax_scale" in err, err
    _, err = home.exo("logits", folder, "--tokens", "-", "--out", home.path / "x", "--plan", home.path / "plan.json",
                      stdin=json.dumps([1] * 65).encode(), expect=1)
    assert "max_context_tokens is 64" in err, err
    assert not (home.path / "x").exists()

    # Foreign and truncated tensors fail at load, by name.
    tensor_files = sorted(p for p in pathlib.Path(cache.strip()).iterdir() if p.suffix == ".exo")
    data = tensor_files[0].read_bytes()
    tensor_files[0].write_bytes(data[:-64])
    _, err = home.exo("run", folder, "--prompt", "Hi", expect=1)
    assert tensor_files[0].name in err, err
    tensor_files[0].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    _, err = home.exo("convert", cache.strip(), "--verify", expect=1)
    assert tensor_files[0].name in err, err

    # A cache of changed weights is stale, and said to be.
    shutil.copytree(GOLDENS / "v3_bf16", folder)
    home.exo("convert", folder, "--force")
    config = json.loads((folder / "config.json").read_text())
    config["routed_scaling_factor"] = 1.5
    (folder / "config.json").write_text(json.dumps(config))
    _, err = home.exo("run", folder, "--prompt", "Hi", "--max-generate-tokens", 1)
    assert "stale" in err, err
    # Deleted now, the folder means what it was last.
    last = logits(home, folder)
    assert last != before
    shutil.rmtree(folder)
    assert logits(home, folder) == last
print("three stages, three processes")

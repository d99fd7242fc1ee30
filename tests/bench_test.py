"""`exo bench` with random weights: every format, the fields that scripts read, threads, profile, a cold start."""
import json
import os
import sys

from exo_testing import GOLDENS, Home

CONFIG = GOLDENS / "v3_bf16/config.json"


def bench(home, *args):
    out, err = home.exo("bench", "--random-weights", CONFIG, "--prefill", 24, "--steps", 3, "--json", *args)
    return json.loads(out), err


def every_format(home):
    for fmt, unit in (("bf16", "bf16_tflops"), ("fp8", "bf16_tflops"), ("int8", "int8_tops"), ("int4", "int4_tops")):
        result, err = bench(home, "--format", fmt)
        assert "writing" in err, err
        machine = result["machine"]
        assert machine["read_gb_per_s"] > 0 and machine["fp32_gflops"] > 0 and machine["features"], machine
        assert [line["test"] for line in result["results"]] == ["decode", "prefill"]
        for line in result["results"]:
            assert line["format"].startswith(fmt), line
            assert 0 < line["slowest_tokens_per_s"] <= line["tokens_per_s"] <= line["fastest_tokens_per_s"], line
            share = line["tokens_per_s"] / line["limit_tokens_per_s"]
            assert abs(share - line["share_of_limit"]) < 1e-3 * share, line
        decode, prefill = result["results"]
        # The limits are those of the units that the format is computed with (attention, not counted there, is less than a
        # third of so short a prompt's operations).
        by_units = prefill[unit] * 1e12 / prefill["ops_per_token"]
        assert prefill["limit_tokens_per_s"] <= by_units * 1.5, (prefill, machine)
        # Of a median step; the bytes are those of the last.
        by_bytes = decode["read_gb_per_s"] * 1e9 / decode["bytes_per_token"]
        assert abs(decode["limit_tokens_per_s"] - by_bytes) < 0.05 * by_bytes, (decode, machine)
        again, err = bench(home, "--format", fmt)
        assert "writing" not in err and again["results"][0]["bytes_per_token"] == decode["bytes_per_token"], err


def what_is_asked_for(home):
    result, _ = bench(home, "--format", "int8", "--threads", "1,2", "--depth", "0,100", "--batch", "1,3", "--profile")
    decodes = [x for x in result["results"] if x["test"] == "decode"]
    assert [(x["threads"], x["depth"], x["batch"]) for x in decodes] == [
        (t, d, b) for t in (1, 2) for d in (0, 100) for b in (1, 3)], decodes
    for line in result["results"]:
        assert {"linear", "experts", "rms_norm"} <= set(line["profile"]), line["profile"]
        assert all(op["calls"] > 0 and op["seconds"] >= 0 for op in line["profile"].values())
    twice, _ = bench(home, "--format", "int8", "--profile", "--repeats", 2)
    calls = [x["profile"]["embedding"]["calls"] for x in twice["results"]]
    assert calls == [3, 2], calls  # the steps, the prefills
    # A longer context is more to read.
    one = [x for x in decodes if x["batch"] == 1]
    assert one[1]["bytes_per_token"] > one[0]["bytes_per_token"], one
    cold, _ = bench(home, "--format", "int8", "--cold")
    assert cold["cold"]["first_prefill_s"] >= cold["cold"]["load_s"] > 0, cold
    roofline, _ = home.exo("bench", "--roofline", "--json")
    threads = [x["n_threads"] for x in json.loads(roofline)["by_threads"]]
    assert threads == sorted(set(threads)) and threads[-1] == len(os.sched_getaffinity(0)), threads


def wrong_questions(home):
    for args, said in ((["--format", "fp7"], "fp7"), (["--layers", 1000], "--layers 1000"), (["--prefill", 0], "0")):
        _, err = home.exo("bench", "--random-weights", CONFIG, *args, expect=None)
        assert said in err, (args, err)
    _, err = home.exo("bench", "--random-weights", "no-such", expect=1)
    assert "no-such" in err and "config.json" in err, err


if __name__ == "__main__":
    with Home() as home:
        every_format(home)
        what_is_asked_for(home)
        wrong_questions(home)
    print("bench: all passed")
    sys.exit(0)

#!/usr/bin/env python3
"""examples/model answers as the reference did: recorded greedy tokens of two tiny checkpoints.

    tests/example_model_test.py PROGRAM        $EXO_SHARED is the folder with goldens/
"""
import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PROGRAM = sys.argv.pop()
GOLDENS = Path(os.environ["EXO_SHARED"]) / "goldens"


def read_i32(path, name):
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    info = json.loads(data[8:8 + length])[name]
    assert info["dtype"] == "I32", info
    begin, end = info["data_offsets"]
    return list(struct.unpack_from(f"<{(end - begin) // 4}i", data, 8 + length + begin))


class ExampleModel(unittest.TestCase):
    def check(self, case):
        folder = GOLDENS / case
        prompt = read_i32(folder / "goldens.safetensors", "p0.input_ids")
        expected = read_i32(folder / "goldens.safetensors", "p0.greedy.ids")
        with tempfile.TemporaryDirectory() as cache:
            command = [PROGRAM, str(folder), cache + "/cache", "8", *map(str, prompt)]
            for _ in range(2):  # the second time from the cache of the first
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual([int(x) for x in done.stdout.split()], expected[:8])

    def test_bf16_with_q_lora(self):
        self.check("v3_bf16")

    def test_fp8(self):
        self.check("v3_fp8")

    def test_softmax_without_q_lora(self):
        self.check("v2_lite")

    def test_wrong_use(self):
        done = subprocess.run([PROGRAM, "x", "y", "3", "1x"], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (2, "model: '1x' is no token id\n"))
        done = subprocess.run([PROGRAM, "/nowhere", "y", "3", "1"], capture_output=True, text=True,
                              check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("/nowhere/config.json", done.stderr)


if __name__ == "__main__":
    unittest.main()

"""Every example of every command's help is run, and the help itself is there to read."""
import json
import re
import shlex
import shutil
import struct
import subprocess

from exo_testing import EXO, Home


def commands(home):
    out, _ = home.exo("--help")
    names = re.findall(r"^  ([a-z-]+) {2,}\S", out[out.index("Subcommands:"):], re.M)
    assert {"run", "convert", "plan", "logits", "tokenize", "render", "version", "models", "perplexity", "verify",
            "bench", "random-checkpoint"} <= set(names), names
    return [[n] for n in names if n != "models"] + [["models", n] for n in ("list", "info", "rm")]


def examples(home, command):
    out, _ = home.exo(*command, "--help")
    assert max(map(len, out.splitlines())) < 260, out
    return [line.strip() for line in out.splitlines() if re.match(r"  (exo|echo) ", line) and "exo " in line]


def write_reference(home, path):
    """What `exo verify` compares with, recorded by this very build."""
    ids = [0, 72, 101, 108]
    home.exo("logits", "tiny", "--tokens", "-", "--out", path, "--capture", "*", "--compute", "fp32",
             stdin=json.dumps(ids).encode())
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8:8 + n]), data[8 + n:]
    named = {f"p0.{name}": t for name, t in header.items() if name != "__metadata__"}
    named["p0.input_ids"] = {"dtype": "I32", "shape": [len(ids)], "data_offsets": [len(body), len(body) + 4 * len(ids)]}
    text = json.dumps(named).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body + struct.pack(f"<{len(ids)}i", *ids))


with Home() as home:
    n = 0
    (home.path / "ids.json").write_text("[0, 72, 101, 108]")
    for name in ("README.md", "THIRD_PARTY.md"):
        shutil.copy(name, home.path)
    write_reference(home, home.path / "reference.safetensors")
    for command in commands(home):
        lines = examples(home, command)
        assert lines or command == ["version"], f"{command}: no example"
        for line in lines:
            shell = re.sub(r"(^|\| )exo ", lambda m: m.group(1) + shlex.quote(EXO) + " ", line)
            done = subprocess.run(["bash", "-c", shell], cwd=home.path, env=home.env, capture_output=True, timeout=600,
                                  stdin=subprocess.DEVNULL)
            assert done.returncode == 0, f"{line}\n{done.stdout.decode()[-500:]}\n{done.stderr.decode()[-2000:]}"
            n += 1
print(f"{n} examples run")

"""What the end-to-end tests share: running the binary, safetensors, folders of their own."""
import array
import json
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile

EXO = os.path.abspath(os.environ.get("EXO", "build/release/exo"))
SHARED = pathlib.Path(os.environ.get("EXO_SHARED", "../shared")).resolve()
GOLDENS = SHARED / "goldens"
CASES = ["v3_bf16", "v3_fp8", "v2_lite", "v2_grouped", "moonlight", "v3_mtp"]


class Home:
    """EXO_HOME in a folder that is removed: no test sees another's caches."""

    def __init__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="exo_test_"))
        self.env = {k: v for k, v in os.environ.items()
                    if k not in ("DEBUG", "TINYGRAD_DEBUG", "CUDA", "CLANG", "DEEPSEEK_V3_CACHE",
                                 "DEEPSEEK_V3_HF_MODEL", "HF_HOME")}
        self.env.update(EXO_HOME=str(self.path / "home"), HF_HOME=str(self.path / "hf"), HOME=str(self.path),
                        TERM="xterm")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)

    def exo(self, *args, stdin=b"", env=None, timeout=600, expect=0):
        """Runs exo; (stdout, stderr) as text. `expect`: the exit code, None for any."""
        done = subprocess.run([EXO, *map(str, args)], input=stdin, capture_output=True, timeout=timeout,
                              env={**self.env, **(env or {})})
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert done.returncode >= 0, f"exo {args}: died by signal {-done.returncode}\n{err[-2000:]}"
        if expect is not None:
            assert done.returncode == expect, f"exo {args}: exit {done.returncode}, expected {expect}\n{out[-500:]}\n{err[-2000:]}"
        self.returncode = done.returncode
        return out, err


def read_safetensors(path):
    """name -> (dtype, shape, values); F32 and I32 as arrays, others left out."""
    data = pathlib.Path(path).read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, t in json.loads(data[8:8 + n]).items():
        if name == "__metadata__" or t["dtype"] not in ("F32", "I32"):
            continue
        begin, end = t["data_offsets"]
        values = array.array("f" if t["dtype"] == "F32" else "i")
        values.frombytes(data[8 + n + begin:8 + n + end])
        tensors[name] = (t["dtype"], t["shape"], values)
    return tensors


def max_difference(a, b):
    """Of two arrays of floats; a NaN is infinitely far."""
    assert len(a) == len(b), (len(a), len(b))
    worst = 0.0
    for x, y in zip(a, b):
        d = abs(x - y)
        if not d <= worst:
            worst = d if d == d else float("inf")
    return worst


def isas(home):
    """The instruction sets that this machine runs, as exo lists them."""
    _, err = home.exo("logits", GOLDENS / "v3_bf16", "--tokens", "-", "--out", os.devnull, "--isa", "none",
                      stdin=b"[0]", expect=1)
    known = [name for name in ("reference", "avx2", "avxvnni", "avx512", "avx512bf16", "amx", "neon") if name in err]
    assert "reference" in known, err
    return known


def tree_bytes(folder, leave_out=("source.json",)):
    """relative path -> bytes of every file."""
    folder = pathlib.Path(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in leave_out}

"""kill -9 at random moments of a conversion: the next run completes and equals an undisturbed one.

kill_test.py [MEGABYTES [KILLS]]: of a random checkpoint of that size (300, 10)."""
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from exo_testing import EXO, Home, tree_bytes

megabytes = sys.argv[1] if len(sys.argv) > 1 else "300"
n_kills = int(sys.argv[2]) if len(sys.argv) > 2 else 10
random.seed(20261122)

with Home() as home:
    checkpoint = home.path / "checkpoint"
    home.exo("random-checkpoint", checkpoint, "--megabytes", megabytes)
    size = sum(p.stat().st_size for p in checkpoint.iterdir())
    begin = time.time()
    folder, err = home.exo("convert", checkpoint)
    whole_s = time.time() - begin
    folder = pathlib.Path(folder.strip())
    undisturbed = tree_bytes(folder, ("source.json",))
    undisturbed = {n: hash(b) for n, b in undisturbed.items() if not n.endswith(".lock")}
    peaks = [float(re.search(r"peak memory ([\d.]+) MB", err).group(1))]
    n_resumed = 0
    for i in range(n_kills):
        shutil.rmtree(folder)
        process = subprocess.Popen([EXO, "convert", checkpoint], env=home.env, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.01, whole_s))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (folder / "weights.json").exists() and list(folder.glob("*.exo")):
            n_resumed += 1
        again, err = home.exo("convert", checkpoint)
        assert pathlib.Path(again.strip()) == folder
        if "peak memory" in err and "MB" in err:
            peaks.append(float(re.search(r"peak memory ([\d.]+) MB", err).group(1)))
        after = {n: hash(b) for n, b in tree_bytes(folder, ("source.json",)).items() if not n.endswith(".lock")}
        assert after == undisturbed, sorted(set(after.items()) ^ set(undisturbed.items()))[:8]
    assert max(peaks) < 1000, peaks
    print(f"{size / 1e6:.0f} MB converted in {whole_s:.1f} s; {n_kills} kills, {n_resumed} of them went on with "
          f"finished parts; peak memory {max(peaks):.0f} MB")

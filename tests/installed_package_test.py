#!/usr/bin/env python3
"""The installed package, as a stranger uses it: install into a fresh folder, build examples/ against
it, run them, and move the folder away from where it was installed.

    tests/installed_package_test.py BUILD_FOLDER
"""
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

BUILD = sys.argv.pop()
ROOT = Path(__file__).resolve().parent.parent


def run(*command, **kwargs):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **kwargs)
    if done.returncode != 0:
        raise AssertionError(f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


class InstalledPackage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        first = Path(cls.temporary.name) / "first"
        run("cmake", "--install", BUILD, "--prefix", first)
        # Nothing may depend on where it was installed.
        cls.prefix = first.rename(Path(cls.temporary.name) / "moved")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def test_program(self):
        exo = self.prefix / "bin/exo"
        self.assertIn("exo", run(exo, "version"))
        self.assertIn("Usage", run(exo, "run", "--help"))

    def test_manual_and_completions(self):
        share = self.prefix / "share"
        for name in ("man/man1/exo.1.gz", "bash-completion/completions/exo",
                     "zsh/vendor-completions/_exo", "fish/vendor_completions.d/exo.fish"):
            self.assertGreater((share / name).stat().st_size, 500, name)

    def test_examples_build_against_it(self):
        build = Path(self.temporary.name) / "build"
        # A tree of its own, so that no header of the source tree is found by accident.
        source = Path(self.temporary.name) / "examples"
        run("cp", "-r", ROOT / "examples", source)
        run("cmake", "-S", source, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={self.prefix}",
            "-DCMAKE_BUILD_TYPE=Release")
        run("cmake", "--build", build)
        self.assertIn("bf16 MLP 160 -> 208 -> 160", run(build / "example_mlp"))
        self.assertNotIn(str(ROOT), (build / "build.ninja").read_text(encoding="utf-8"))

    def test_no_path_of_the_build_in_the_package(self):
        for path in self.prefix.rglob("*.cmake"):
            self.assertNotIn(str(ROOT), path.read_text(encoding="utf-8"), path)


if __name__ == "__main__":
    os.environ.pop("EXO", None)
    unittest.main()

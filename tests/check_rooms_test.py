#!/usr/bin/env python3
"""The check of the tree must find what it is there for: each rule broken once in a small tree."""
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

CHECK = Path(__file__).resolve().parent / "check_rooms.py"

CMAKE = """exo_room(base LIBS fmt::fmt)
exo_room(tensor MAY_INCLUDE base)
exo_room(kernels/cpu MAY_INCLUDE base tensor
         LIBS hwy)
exo_room(model MAY_INCLUDE base tensor)
exo_room(cli MAY_INCLUDE base tensor model kernels/cpu)
"""
GOOD = {
    "CMakeLists.txt": CMAKE,
    "src/base/a.h": "/// What it is.\n#pragma once\n#include <string>\n",
    "src/base/a.cc": '#include "base/a.h"\n',
    "src/base/a_test.cc": '#include "base/a.h"\nauto v = std::getenv("X");\n',
    "src/base/test_support.h": '/// For tests.\n#pragma once\nauto w = std::getenv("X");\n',
    "src/tensor/t.h": '/// What it is.\n#pragma once\n#include "base/a.h"\n',
    "src/kernels/cpu/k.cc": '#define HWY_TARGET_INCLUDE "kernels/cpu/k.cc"\n'
                            '#include "hwy/highway.h"\n#include "tensor/t.h"\n' + "\n" * 900,
    "src/kernels/cpu/v-inl.h": "/// Read once a target.\n",
    "src/model/m.cc": '#include "tensor/t.h"\n',
    "src/cli/main.cc": '#include "kernels/cpu/k.cc"\nauto v = std::getenv("X");\n',
    "README.md": "see docs\n",
}


def check(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        done = subprocess.run([sys.executable, str(CHECK), folder], capture_output=True, text=True,
                              check=False)
        return done.returncode, done.stdout


class CheckRooms(unittest.TestCase):
    def test_a_good_tree_passes_silently(self):
        self.assertEqual(check(GOOD), (0, ""))

    def broken(self, changes, *expected):
        code, out = check({**GOOD, **changes})
        self.assertEqual(code, 1, out)
        for text in expected:
            self.assertIn(text, out)
        # The violation asked for, its tally, and nothing else.
        self.assertEqual(len(out.splitlines()), len(expected) + 1, out)

    def test_include_upwards(self):
        self.broken({"src/base/b.cc": '#include "tensor/t.h"\n'},
                    "src/base/b.cc:1: room 'base' includes \"tensor/t.h\" of room 'tensor'; "
                    "it may include only: nothing")

    def test_include_sideways(self):
        self.broken({"src/kernels/cpu/x.h": '// x\n#pragma once\n',
                     "src/model/m.cc": '\n#  include "kernels/cpu/x.h"\n'},
                    "src/model/m.cc:2: room 'model' includes \"kernels/cpu/x.h\" of room "
                    "'kernels/cpu'")

    def test_tests_obey_too(self):
        self.broken({"src/base/b_test.cc": '#include "model/m.cc"\n'}, "of room 'model'")

    def test_highway_target_include(self):
        self.broken({"src/model/m.cc": '#define HWY_TARGET_INCLUDE "kernels/cpu/k.cc"\n'},
                    "of room 'kernels/cpu'")

    def test_include_by_bare_name(self):
        self.broken({"src/base/a.cc": '#include "a.h"\n'}, "expected a path from src/")

    def test_include_of_nothing(self):
        self.broken({"src/base/a.cc": '#include "base/gone.h"\n'}, "expected a path from src/")

    def test_include_with_angles(self):
        self.broken({"src/tensor/u.cc": "#include <base/a.h>\n"}, "src/tensor/u.cc:1: write")

    def test_undeclared_room(self):
        self.broken({"src/magic/m.cc": "int x;\n"}, "src/magic/m.cc: lies in no declared room")

    def test_room_above_its_ground(self):
        self.broken({"CMakeLists.txt": "exo_room(hub MAY_INCLUDE cli)\n" + CMAKE},
                    "room 'hub' may include 'cli', which is not declared above it")

    def test_room_twice(self):
        self.broken({"CMakeLists.txt": CMAKE + "exo_room(cli MAY_INCLUDE base tensor model "
                     "kernels/cpu)\n"}, "declared twice")

    def test_commented_room_is_none(self):
        self.broken({"CMakeLists.txt": "# exo_room(magic)\n" + CMAKE, "src/magic/m.cc": "int x;\n"},
                    "lies in no declared room")

    def test_environment(self):
        self.broken({"src/model/m.cc": 'int x;\nauto v = std::getenv("HOME");\n'},
                    "src/model/m.cc:2: 'getenv': only src/cli reads the environment")

    def test_header_without_purpose(self):
        self.broken({"src/base/b.h": "#pragma once\n"}, "src/base/b.h:1: expected a comment first")

    def test_header_without_guard(self):
        self.broken({"src/base/b.h": "// b\n"}, "src/base/b.h: expected #pragma once")

    def test_long_file(self):
        self.broken({"src/model/m.cc": "int x;\n" * 701}, "src/model/m.cc: 701 lines")

    def test_large_file(self):
        self.broken({"data.bin": "x" * 5_000_001}, "data.bin: 5000001 bytes")

    def test_large_model_is_fine(self):
        self.assertEqual(check({**GOOD, "models/tiny/m.bin": "x" * 5_000_001}), (0, ""))

    def test_machine_path(self):
        self.broken({"README.md": "see\n/ho" "me/joe/x\n"}, "README.md:2:")

    def test_unfinished(self):
        self.broken({"src/model/m.cc": "// TO" "DO: all\n"}, "src/model/m.cc:1:")

    def test_disabled_test(self):
        self.broken({"src/model/m_test.cc": "TEST(A, DISABLED_b) {}\n"}, "src/model/m_test.cc:1:")


if __name__ == "__main__":
    unittest.main()

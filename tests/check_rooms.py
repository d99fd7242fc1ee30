#!/usr/bin/env python3
"""Checks the shape of the tree: who includes whom, and a few house rules (docs/rooms.md).

    tests/check_rooms.py [ROOT]      prints one line a violation, exits 1 if there are any

- An #include in src/<room> reaches only the room itself and what its exo_room() line in
  CMakeLists.txt lists; every folder with code under src/ belongs to a declared room; nothing is
  declared twice, and no room reaches itself through others.
- The environment is read in src/cli alone (tests and fuzz targets apart).
- Headers open with a comment and have #pragma once.
- Files of src/ and tools/ keep within MAX_LINES (kernels apart), files of the tree within MAX_BYTES
  (models/ apart); no path of somebody's machine, no marks of unfinished work.
"""
import os
import re
import subprocess
import sys
from pathlib import Path

MAX_LINES = 700
MAX_BYTES = 5_000_000
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.M)
TARGET_INCLUDE = re.compile(r'^[ \t]*#[ \t]*define[ \t]+HWY_TARGET_INCLUDE[ \t]+"([^"]+)"', re.M)
ENVIRONMENT = re.compile(r"\b(?:secure_getenv|getenv|setenv|putenv|unsetenv|environ)\b")
# Tests, fuzz targets and what they share: test_support.h, testing/.
TEST_CODE = re.compile(r"_(?:test|fuzz)\.cc$|/test_\w+\.h$|/testing/")
MACHINE_PATH = re.compile(r"/(?:work|root|farm)/\w|/home/[a-z]|/tmp/bash[_]jobs")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX)\b|\bDISABLED_\w")
TEXT_SUFFIXES = {".cc", ".h", ".cu", ".cuh", ".py", ".sh", ".md", ".txt", ".cmake", ".json", ".in",
                 ".yml", ".yaml", ".1", ".html", ".js", ".css", ""}


def declared_rooms(cmake_text):
    """{room: [rooms it may include]} from the exo_room() lines, and complaints about them."""
    rooms, problems = {}, []
    text = re.sub(r"#[^\n]*", "", cmake_text)
    for name, rest in re.findall(r"\bexo_room\(\s*([\w/]+)([^)]*)\)", text):
        if name in rooms:
            problems.append(f"CMakeLists.txt: room '{name}' is declared twice")
        words = rest.split()
        may = []
        if "MAY_INCLUDE" in words:
            for word in words[words.index("MAY_INCLUDE") + 1:]:
                if word == "LIBS":
                    break
                may.append(word)
        for other in may:
            if other not in rooms:
                problems.append(f"CMakeLists.txt: room '{name}' may include '{other}', which is not "
                                "declared above it: rooms are listed from the ground up")
        rooms[name] = may
    if not rooms:
        problems.append("CMakeLists.txt: found no exo_room() line")
    return rooms, problems


def room_of(path, rooms):
    """The declared room that holds src/<path>; the longest name wins."""
    best = None
    for room in rooms:
        if path.startswith(room + "/") and (best is None or len(room) > len(best)):
            best = room
    return best


def tracked_files(root):
    """The tree's files as git sees them (new ones too); all files where there is no repository."""
    if (root / ".git").exists():
        out = subprocess.run(["git", "-C", str(root), "ls-files", "-z", "--cached", "--others",
                              "--exclude-standard"], capture_output=True, check=False)
        if out.returncode == 0:
            names = out.stdout.decode("utf-8", "surrogateescape").split("\0")
            return sorted({n for n in names if n and (root / n).is_file()})
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in ("build", ".git", "__pycache__")]
        found += [os.path.relpath(os.path.join(folder, n), root) for n in names]
    return sorted(found)


def line_of(text, position):
    return text.count("\n", 0, position) + 1


def check_source(name, text, root, rooms):
    """Problems of one C++ file src/...: its room, its includes, the environment, its opening."""
    inside = name[len("src/"):]
    room = room_of(inside, rooms)
    if room is None:
        yield f"{name}: lies in no declared room; expected an exo_room() line in CMakeLists.txt"
        return
    allowed = {room, *rooms[room]}
    found = [(m.start(), m.group(1), m.group(2)) for m in INCLUDE.finditer(text)]
    found += [(m.start(), '"', m.group(1)) for m in TARGET_INCLUDE.finditer(text)]
    for position, quote, target in found:
        where = f"{name}:{line_of(text, position)}"
        other = room_of(target, rooms)
        if quote == '"' and target.startswith("hwy/"):
            continue  # Highway's own way of writing its includes
        if quote == "<":
            if other is not None and (root / "src" / target).exists():
                yield f"{where}: write #include \"{target}\", not <{target}>"
        elif other is None or not (root / "src" / target).exists():
            yield (f"{where}: includes \"{target}\"; expected a path from src/, as in "
                   "\"base/status.h\"")
        elif other not in allowed:
            yield (f"{where}: room '{room}' includes \"{target}\" of room '{other}'; it may include "
                   f"only: {' '.join(rooms[room]) or 'nothing'}")
    if room != "cli" and not TEST_CODE.search(name):
        for m in ENVIRONMENT.finditer(text):
            yield (f"{name}:{line_of(text, m.start())}: '{m.group(0)}': only src/cli reads the "
                   "environment; take the value as an argument")
    if name.endswith(".h"):
        if not text.startswith(("//", "/*")):
            yield f"{name}:1: expected a comment first: purpose, contract, errors, source"
        # Highway's -inl.h files are read once for each target, under a guard of their own.
        if "#pragma once" not in text and not name.endswith("-inl.h"):
            yield f"{name}: expected #pragma once"


def check_tree(root):
    root = Path(root)
    rooms, problems = declared_rooms((root / "CMakeLists.txt").read_text(encoding="utf-8"))
    for name in tracked_files(root):
        path = root / name
        size_bytes = path.stat().st_size
        if size_bytes > MAX_BYTES and not name.startswith("models/"):
            problems.append(f"{name}: {size_bytes} bytes; expected at most {MAX_BYTES} in the tree")
            continue
        if path.suffix not in TEXT_SUFFIXES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a file without a suffix may be anything
        if name.startswith("src/") and path.suffix in (".cc", ".h", ".cu", ".cuh"):
            problems += check_source(name, text, root, rooms)
        for m in MACHINE_PATH.finditer(text):
            problems.append(f"{name}:{line_of(text, m.start())}: '{m.group(0)}': a path of "
                            "somebody's machine")
        if name.startswith(("src/", "tools/", "examples/", "bench/")):
            for m in UNFINISHED.finditer(text):
                problems.append(f"{name}:{line_of(text, m.start())}: '{m.group(0)}': unfinished "
                                "work belongs in an issue")
            n_lines = text.count("\n")
            if n_lines > MAX_LINES and not name.startswith("src/kernels/"):
                problems.append(f"{name}: {n_lines} lines; expected at most {MAX_LINES}")
    return problems


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    problems = check_tree(root)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} violation(s) of the tree's rules (docs/rooms.md)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

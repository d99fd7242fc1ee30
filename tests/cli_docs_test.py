#!/usr/bin/env python3
"""The manual page and the completions say what --help says: $EXO is the program, $EXO_DOCS their folder."""
import functools
import os
import re
import subprocess
import unittest
from pathlib import Path

EXO = os.environ["EXO"]
DOCS = Path(os.environ["EXO_DOCS"])


@functools.lru_cache(maxsize=None)
def help_of(*words):
    return subprocess.run([EXO, *words, "--help"], capture_output=True, text=True, check=True).stdout


def commands_in(text):
    """Names under the heading Subcommands of a --help text, read apart from cli_docs.py's parser."""
    names, inside = [], False
    for line in text.split("\n"):
        if line == "Subcommands:":
            inside = True
        elif inside and not line.startswith("  "):
            break
        elif inside:
            names.append(line.split()[0])
    return names


def options_in(text):
    return set(re.findall(r"^  (?:-\w,)?(--[\w-]+)", text, flags=re.M)) | {
        name for line in re.findall(r"^  (--[\w-]+(?:,--[\w-]+)+)", text, flags=re.M)
        for name in line.split(",")}


def complete(line):
    """What bash offers for the last word of `line`."""
    script = f"""source "$1"; COMP_WORDS=({line}); [[ "$2" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); compopt() {{ :; }}; _exo; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", script, "bash", str(DOCS / "exo.bash"), line],
                          capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return set(done.stdout.split())


class CliDocs(unittest.TestCase):
    def setUp(self):
        self.top = help_of()
        self.commands = commands_in(self.top)
        self.assertIn("run", self.commands)

    def test_manual_has_every_command_and_option(self):
        page = subprocess.run(["groff", "-man", "-Tascii", "-ww", "-P-cbou", str(DOCS / "exo.1")],
                              capture_output=True, text=True, check=True)
        self.assertEqual(page.stderr, "")
        text = page.stdout
        for name in self.commands:
            self.assertRegex(text, rf"\bexo {name}\b")
            for option in options_in(help_of(name)) - {"--help"}:
                self.assertIn(option, text, f"exo {name}")
        for option in options_in(self.top) - {"--help"}:
            self.assertIn(option, text)

    def test_bash_completes_commands_and_options(self):
        self.assertLessEqual(set(self.commands), complete("exo "))
        for name in self.commands:
            self.assertIn(name, complete(f"exo {name[:-1]}"))
            expected = options_in(help_of(name))
            self.assertEqual(expected, complete(f"exo {name} --") & expected, name)
            for sub in commands_in(help_of(name)):
                self.assertIn(sub, complete(f"exo {name} "))
                expected = options_in(help_of(name, sub))
                self.assertEqual(expected, complete(f"exo {name} {sub} --") & expected, sub)

    def test_bash_completes_values(self):
        self.assertEqual(complete("exo run --compute "), {"native", "fp32"})
        self.assertEqual(complete("exo --inference-engine d"), {"dummy"})
        self.assertIn("README.md", complete("exo run --prompt-file READM"))

    def test_zsh_and_fish_name_every_option(self):
        zsh = (DOCS / "_exo").read_text(encoding="utf-8")
        fish = (DOCS / "exo.fish").read_text(encoding="utf-8")
        for name in self.commands:
            self.assertRegex(fish, rf"-a {name} ")
            self.assertIn(f"      {name})", zsh)
            for option in options_in(help_of(name)) - {"--help"}:
                self.assertIn(f"'{option}[", zsh.replace("'*", "'"))
                self.assertIn(f"-l {option[2:]} ", fish)


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""Writes exo's manual page and shell completions from what the program itself says with --help.

    packaging/cli_docs.py EXO FOLDER

EXO is the built program; FOLDER gets exo.1 (and exo.1.gz), exo.bash, _exo (zsh) and exo.fish. The manual's prose is
packaging/exo.1.in; @OPTIONS@ and @COMMANDS@ in it are filled in here. The build runs this, so that
neither can say anything else than --help (the ctest cli_docs tries them).
"""
import gzip
import re
import subprocess
import sys
from pathlib import Path

COLUMN = 30  # CLI11 begins an option's text here, on its own line when the name is longer


class Option:
    def __init__(self, left, text):
        names, _, rest = left.partition(" ")
        self.names = names.split(",")
        self.text = text
        self.choices = []
        match = re.search(r"\{([^}]*)\}", rest)
        if match:
            self.choices = match.group(1).split(",")
        self.value = None  # what stands for the value, None for a flag
        if match:
            self.value = "|".join(self.choices)
        elif rest and not rest.startswith("Excludes"):
            self.value = {"INT": "N", "UINT": "N", "FLOAT": "X"}.get(re.split(r"[ :]", rest)[0], "TEXT")
        self.repeatable = "..." in rest
        self.positional = not left.startswith("-")

    def takes_path(self):
        return bool(re.search(r"file|folder|--(out|report|plan|reference|config|tokenizer)\b",
                              f"{' '.join(self.names)} {self.text}"))


class Help:
    """One --help text: description, groups of options, positionals, subcommands, footer."""

    def __init__(self, text):
        self.groups, self.commands, self.positionals = [], [], []
        head, _, body = text.partition("Usage: ")
        self.description = head.strip()
        lines = body.split("\n")
        self.usage = lines[0]
        title, entries, footer, left = None, None, [], None
        for line, after in zip(lines[1:], [*lines[2:], ""]):
            if line.startswith(" ") and entries is not None:
                if left is not None:
                    entries.append((left, line.strip()))
                    left = None
                elif after.startswith(" " * COLUMN):
                    left = line.strip()
                else:
                    entries.append((line[:COLUMN].strip(), line[COLUMN:].strip()))
            elif line.endswith(":") and not footer and line != "Examples:":
                title, entries = line[:-1], []
                self.groups.append((title, entries))
            elif line or footer:
                entries = None
                footer.append(line)
        self.footer = "\n".join(footer).strip()
        kept = []
        for title, entries in self.groups:
            if title == "Subcommands":
                self.commands = entries
            elif title == "Positionals":
                self.positionals = [Option(*e) for e in entries]
            else:
                kept.append((title, [Option(*e) for e in entries]))
        self.groups = kept

    def options(self):
        return [o for _, options in self.groups for o in options]


def read_help(exo, *words):
    done = subprocess.run([exo, *words, "--help"], capture_output=True, text=True, check=True)
    return Help(done.stdout)


def all_commands(exo, top):
    """[(words, help text)] of every command and its subcommands, in help's order."""
    found = []
    for name, text in top.commands:
        page = read_help(exo, name)
        found.append(((name,), text, page))
        found += [((name, sub), sub_text, read_help(exo, name, sub)) for sub, sub_text in page.commands]
    return found


def roff(text):
    """Plain text as roff: backslashes, dashes and leading dots or quotes made harmless."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\`").replace("'", "\\(aq")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.M)


def man_options(options):
    out = []
    for option in options:
        if option.names == ["-h", "--help"]:
            continue
        names = ", ".join(f"\\fB{roff(n)}\\fR" for n in option.names)
        value = f" \\fI{roff(option.value)}\\fR" if option.value else ""
        out.append(f".TP\n{names}{value}\n{roff(option.text)}")
    return "\n".join(out)


def man_footer(footer):
    """Prose as a paragraph, indented lines (examples) as they are."""
    out = []
    for line in footer.split("\n"):
        out.append(f".RS\n.nf\n{roff(line.strip())}\n.fi\n.RE" if line.startswith("  ") else
                   f".PP\n{roff(line)}" if line else ".PP")
    return "\n".join(out).replace("\n.fi\n.RE\n.RS\n.nf\n", "\n")


def manual(source, top, commands, version):
    options = []
    for title, members in top.groups:
        if title != "Options":
            options.append(f".SS {roff(title)}\n{man_options(members)}")
    pages = []
    for words, text, page in commands:
        operands = [f"[{o.names[0]}]" if f"[{o.names[0]}]" in page.usage else o.names[0]
                    for o in page.positionals]
        heading = " ".join(["exo", *words, *operands])
        pages.append(f".SS {roff(heading)}\n{roff(text[0].upper() + text[1:])}.")
        for _, members in page.groups:
            pages.append(man_options(members))
        if page.footer:
            pages.append(man_footer(page.footer))
    text = source.replace("@VERSION@", version).replace("@OPTIONS@", "\n".join(options))
    text = text.replace("@COMMANDS@", "\n".join(pages))
    return "\n".join(line for line in text.split("\n") if line.strip()) + "\n"


def words_of(options):
    return [n for o in options for n in o.names if n.startswith("-")]


def value_cases(options, indent, emit):
    """Shell case branches, one for each option with a value; emit(option) says how it completes."""
    out = []
    for option in options:
        if option.value and not option.positional:
            out.append(f"{indent}{'|'.join(option.names)}) {emit(option)} ;;")
    return out


def bash(top, commands):
    def emit(option):
        if option.choices:
            return f'COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$cur")); return'
        return "_filedir_exo; return" if option.takes_path() else "return"

    lines = ["# bash completion for exo, made from `exo --help`.",
             '_filedir_exo() { compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); }',
             "_exo() {",
             "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= word",
             "  COMPREPLY=()",
             '  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
             '    case "$command:$word" in']
    for words, _, _ in commands:
        before = " ".join(words[:-1])
        lines.append(f'      "{before}:{words[-1]}") command="{" ".join(words)}" ;;')
    lines += ["    esac", "  done", '  case "$prev" in', *value_cases(top.options(), "    ", emit),
              "  esac", "  local words files=", '  case "$command" in',
              f'    "") words="{" ".join(n for n, _ in top.commands)}" ;;']
    for words, _, page in commands:
        lines.append(f'    "{" ".join(words)}")')
        cases = value_cases(page.options(), "        ", emit)
        if cases:
            lines += ['      case "$prev" in', *cases, "      esac"]
        choices = [n for n, _ in page.commands] + words_of(page.options())
        lines.append(f'      words="{" ".join(choices)}"'
                     + ("; files=yes" if page.positionals else "") + " ;;")
    lines += ["  esac", f'  words+=" {" ".join(words_of(top.options()))}"',
              '  COMPREPLY=($(compgen -W "$words" -- "$cur"))',
              '  if [[ -n $files && $cur != -* ]]; then compopt -o filenames; '
              'COMPREPLY+=($(compgen -f -- "$cur")); fi',
              "}", "complete -F _exo exo"]
    return "\n".join(lines) + "\n"


def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


def zsh(top, commands):
    def spec(option):
        text = option.text.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
        tail = ""
        if option.value:
            tail = ":value:" + (f"({' '.join(option.choices)})" if option.choices else
                                "_files" if option.takes_path() else "")
        star = "*" if option.repeatable else ""
        return [quoted(f"{star}{n}[{text}]{tail}") for n in option.names]

    shared = [s for o in top.options() for s in spec(o)]
    lines = ["#compdef exo", "# zsh completion for exo, made from `exo --help`.",
             "local -a shared commands", "local context state line", "shared=(",
             *(f"  {s}" for s in shared), ")", "commands=("]
    for name, text in top.commands:
        lines.append("  " + quoted(name + ":" + text.replace(":", "\\:")))
    lines += [")", '_arguments -C $shared "1: :->command" "*:: :->rest"', "case $state in",
              '  command) _describe command commands ;;', "  rest)", '    case "$words[1]" in']
    for words, _, page in commands:
        if len(words) > 1:
            continue
        lines.append(f"      {words[0]})")
        subs = [c for c in commands if len(c[0]) == 2 and c[0][0] == words[0]]
        if subs:
            names = " ".join(c[0][1] for c in subs)
            lines.append(f'        if (( CURRENT == 2 )); then _values command {names}; else')
            lines.append('          case "$words[2]" in')
            for sub_words, _, sub in subs:
                specs = " ".join(s for o in sub.options() for s in spec(o))
                lines.append(f"            {sub_words[1]}) shift words; (( CURRENT-- )); "
                             f"_arguments $shared {specs} '*:model:_files' ;;")
            lines += ["          esac", "        fi ;;"]
        else:
            specs = " ".join(s for o in page.options() for s in spec(o))
            lines.append(f"        _arguments $shared {specs} '*:model:_files' ;;")
    lines += ["    esac ;;", "esac"]
    return "\n".join(lines) + "\n"


def fish(top, commands):
    def line(option, condition):
        parts = ["complete -c exo", f"-n {quoted(condition)}" if condition else ""]
        for name in option.names:
            parts.append(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}")
        if option.choices:
            parts.append(f"-x -a {quoted(' '.join(option.choices))}")
        elif option.value:
            parts.append("-r -F" if option.takes_path() else "-x")
        parts.append(f"-d {quoted(option.text)}")
        return " ".join(p for p in parts if p)

    lines = ["# fish completion for exo, made from `exo --help`."]
    lines += [line(o, "") for o in top.options()]
    for name, text in top.commands:
        lines.append(f"complete -c exo -f -n __fish_use_subcommand -a {name} -d {quoted(text)}")
    for words, text, page in commands:
        condition = "; and ".join(f"__fish_seen_subcommand_from {w}" for w in words)
        if len(words) == 2:
            lines.append(f"complete -c exo -f -n '__fish_seen_subcommand_from {words[0]}' "
                         f"-a {words[1]} -d {quoted(text)}")
        lines += [line(o, condition) for o in page.options() if o.names != ["-h", "--help"]]
    return "\n".join(lines) + "\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.split("\n\n")[1])
    exo, folder = sys.argv[1], Path(sys.argv[2])
    top = read_help(exo)
    commands = all_commands(exo, top)
    version = subprocess.run([exo, "version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    source = (Path(__file__).resolve().parent / "exo.1.in").read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("exo.1", manual(source, top, commands, version)), ("exo.bash", bash(top, commands)),
                       ("_exo", zsh(top, commands)), ("exo.fish", fish(top, commands))):
        (folder / name).write_text(text, encoding="utf-8")
    # The same bytes every time: no name and no time of its making in the compressed page.
    page = (folder / "exo.1").read_bytes()
    (folder / "exo.1.gz").write_bytes(gzip.compress(page, compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()

"""The interactive chat through a pseudo-terminal: with the model that echoes, one of random weights, the shipped one.

What a person sees is recorded in chat_screens.txt: `chat_test.py --record` writes it anew."""
import json
import pathlib
import re
import sys

from exo_testing import EXO, GOLDENS, Home
from terminal import CTRL_C, CTRL_D, Terminal

SCREENS = pathlib.Path(__file__).with_name("chat_screens.txt")
JOB_CONTROL = pathlib.Path(__file__).with_name("job_control.py")
DUMMY = ("run", "--inference-engine", "dummy")


def start(home, *args, **kwargs):
    t = Terminal(home, EXO, *args, **kwargs)
    t.read_until(">>> ")
    return t


def echo_chat(home):
    """Everything around a model."""
    t = start(home, *DUMMY)
    t.ask("Hello there", "dummy: Hello there")
    t.ask("/help", "/regenerate", "/exit")
    t.ask("/nonsense", "no such command")
    t.ask("/system You are terse.", "(system: You are terse.)")
    t.ask("/system -", "(no system text)")
    t.ask("/set temperature 0.3", "(temperature is 0.3)")
    t.ask("/set top_p 7", "top_p: expected")
    t.ask("/set typical_p 0.9", "(typical_p is 0.9)")
    t.ask("/set", "temperature 0.3, top_k 0, top_p 1, min_p 0, typical_p 0.9,")
    t.ask("/set colour blue", "expected a name")
    t.ask("/set think on", "(think is on)")
    t.ask("/regenerate", "dummy: Hello there")
    t.say("one \\", "... ")
    t.ask("two", "dummy: one \ntwo")
    t.say('"""first', "... ")
    t.ask('second"""', "dummy: first\nsecond")
    t.ask("Grüße, 世界", "dummy: Grüße, 世界")
    t.ask("<think>because</think>so", "dummy: <think>because</think>so")
    saved = home.path / "saved.json"
    t.ask(f"/save {saved}", "(saved 10 messages")
    t.ask("/reset", "(forgotten)")
    t.ask("/regenerate", "(nothing to answer yet)")
    t.ask(f"/load {saved}", "(10 messages from")
    t.ask(f"/load {home.path}/none.json", "none.json: ")
    t.ask("/stats", "(no answer yet)")
    t.type("half a line")
    t.type(CTRL_C)
    t.read_until("(Ctrl-D or /exit leaves)")
    t.read_until(">>> ")
    t.type("\x1b[A")  # the history brings the last line back
    t.read_until("/stats")
    t.ask("", "(no answer yet)")
    t.type("/reg\t")  # Tab completes a command
    t.read_until("/regenerate")
    t.ask("", "dummy: <think>because</think>so")
    t.ask("bye", "dummy: bye")
    t.ask("/stats", "end of answer")
    t.type("\0")  # Ctrl-Space is no Ctrl-D
    assert t.leave() == 0
    history = home.path / "home" / "history"
    assert "Hello" in history.read_text() and history.stat().st_mode & 0o077 == 0

    t = start(home, *DUMMY)  # history outlives the program
    t.type("\0")  # neither is one at the first prompt
    t.type("\x1b[A")
    t.read_until("/stats")
    t.type(CTRL_C)
    t.read_until("leaves)")
    t.read_until(">>> ")
    t.say("/exit", "")
    assert t.end() == 0


def pastes(home):
    """What is pasted is one message, however many lines it has, and no key in it acts."""
    t = start(home, *DUMMY)
    t.type("Look: ")
    t.paste("def f():\r\treturn 1\r\x04\0\x1b[Ax\n")
    t.read_until("return 1")
    t.ask("", "dummy: Look: def f():\n\treturn 1\n[Ax")
    t.paste("\n".join(f"line {i}" for i in range(200)))
    t.read_until("[paste 1: 200 lines, 1.7 kB]")
    t.type(" and ")
    t.paste("0123456789" * 200)
    t.read_until("[paste 2: 2.0 kB]")
    shown = t.ask("", "dummy: line 0\nline 1\n", "\nline 199 and 0123456789")
    assert "0123456789" * 200 in shown.replace("\n", "") + "0", shown[-300:]
    t.paste(b"bytes \xff\xfe end")
    t.ask("", "dummy: bytes \ufffd\ufffd end")
    t.type("keep")
    t.paste("")
    t.ask("", "dummy: keep")
    assert t.leave() == 0


def window(home):
    """Another width while a line is typed, and Ctrl-Z and back."""
    t = Terminal(home, sys.executable, JOB_CONTROL, EXO, *DUMMY, columns=60, rows=20)
    t.read_until(">>> ")
    t.type("a" * 70)
    t.read_until("a" * 10)
    t.resize(120, 20)
    t.type("b")
    t.ask("", "dummy: " + "a" * 70 + "b")
    for i in range(3):
        t.type("half")
        t.read_until("half")
        t.type(b"\x1a")
        t.read_until("stopped")
        t.say("fg", ">>> half")
        shown = t.ask(" and half", "dummy: half and half")
        assert shown.count("and half") == 2, shown  # once as typed: the terminal itself shows nothing
    assert t.leave() == 0


def model_chat(home, model):
    """A real engine: turns reuse the cache, Ctrl-C stops an answer and keeps the chat."""
    flags = ["run", model, "--greedy", "--ignore-eos", "--tokenizer", home.path / "tokenizer", "--chat-format",
             "deepseek-r1"]
    t = start(home, *flags, "--max-generate-tokens", "12")
    t.ask("Hi")
    first = t.ask("/stats", "token limit")
    n_prompt = int(re.search(r"(\d+) prompt tokens,", first).group(1))
    assert "kept" not in first
    t.ask("More")
    second = t.ask("/stats", "token limit")
    # R1's template drops the reasoning (here the whole answer, which never left it): what comes before stays.
    kept = int(re.search(r"\((\d+) kept\)", second).group(1))
    assert n_prompt - 3 <= kept <= n_prompt, second
    assert t.leave() == 0
    # The slowest kernels and no limit: this answer lasts until somebody stops it.
    t = start(home, *flags, "--max-generate-tokens", "100000", "--isa", "reference", "--threads", "1")
    t.type("Count\n")
    t.read_until("\x1b[2m")  # dimmed: the answer has begun
    t.type(CTRL_C)
    t.read_until("(stopped)")
    t.read_until(">>> ")
    t.ask("/set max_tokens 3", "(max_tokens is 3)")
    t.ask("Still there?")
    t.ask("/stats", " 3 tokens")
    t.ask("/set max_tokens 100000", "(max_tokens is")
    t.type("On and on\n")
    t.read_until("\x1b[2m")
    t.type(CTRL_C + CTRL_C + CTRL_C)  # at once: stopped, or out, but never stuck and the terminal never spoilt
    t.type(CTRL_D)
    assert t.end() in (0, 130)


def full_context(home, model):
    """A context that fills in mid-answer ends there, and nothing is lost."""
    t = start(home, "run", model, "--context", "64", "--greedy", "--ignore-eos")
    t.ask("A question", "the context is full")
    t.ask("Another one", "the prompt has", "(this message is not part of the conversation)")
    t.ask(f"/save {home.path}/full.json", "(saved 2 messages")
    kept = json.loads((home.path / "full.json").read_text())["messages"]
    assert kept[0]["content"] == "A question" and len(kept[1]["content"]) > 10, kept
    t.ask("/reset", "(forgotten)")
    t.ask("/set max_tokens 4", "(max_tokens is 4)")
    t.ask("Hi")
    # 10 MB at once: counted, refused, and the conversation goes on.
    t.paste(b"word " * 2_000_000)
    t.read_until("[paste 1: 10.0 MB]")
    t.ask("", "the prompt has 10", "the context holds 64", "(this message is not part of the conversation)")
    t.ask(f"/save {home.path}/after.json", "(saved 2 messages")
    # A conversation that no template could render is refused as a whole.
    for text in ('{"messages": [{"role": "user", "content": "\\ud800"}]}', '{"messages": 3}', "\0\xff", "[" * 99999,
                 '{"messages": [{"role": "robot", "content": "x"}]}'):
        (home.path / "bad.json").write_bytes(text.encode("latin-1"))
        t.ask(f"/load {home.path}/bad.json", "bad.json: ")
    t.ask(f"/save {home.path}/no/such/folder", "no/such/folder")
    t.ask(f"/save {home.path}/after.json", "(saved 2 messages")
    assert t.leave() == 0


def piped(home, model):
    """No terminal: plain text, one turn a line."""
    out, err = home.exo(*DUMMY, stdin=b"first\n/set\nsecond\n")
    assert out == "dummy: first\ndummy: second\n" and "\x1b" not in out + err, (out, err)
    out, err = home.exo("run", model, "--max-generate-tokens", 4, "--seed", 5, stdin=b"Hi\n")
    again, _ = home.exo("run", model, "--max-generate-tokens", 4, "--seed", 5, "--threads", 1, stdin=b"Hi\n")
    assert out == again and out, (out, again)
    out, _ = home.exo("run", model, "--max-generate-tokens", 2, stdin=bytes(range(256)) + b"\n\xff\xfe\0\x80\n")
    assert out
    out, _ = home.exo(*DUMMY, "--prompt", "x")
    assert out == "dummy: x\n"


def thinking(home, model):
    """V3.1's switch, and a model that has none."""
    flags = ["run", model, "--greedy", "--ignore-eos", "--max-generate-tokens", 8, "--tokenizer", home.path / "tokenizer",
             "--prompt", "Hi", "--json"]
    for switch, thinks in (("--think", True), ("--no-think", False)):
        out, err = home.exo(*flags, "--chat-format", "deepseek-v3.1", switch)
        answer = json.loads(out)
        assert bool(answer["reasoning"]) == thinks and bool(answer["text"]) != thinks, (switch, answer)
        assert "no switch" not in err, err
        _, err = home.exo(*flags, "--chat-format", "deepseek-v3", switch)
        assert "has no switch for thinking" in err, err


def shipped_chat(home):
    """The model that comes with exo: it reasons, and the template drops that from the history."""
    flags = ["run", "tiny", "--greedy", "--max-generate-tokens", "80"]
    t = start(home, *flags)
    shown = t.ask("What is your name?")
    assert "\x1b[2m" in shown and "\x1b[0m" in shown, f"reasoning is not dimmed: {shown!r}"
    assert "<think>" not in shown and "</think>" not in shown, shown
    assert len(shown.split("\x1b[0m")[1].strip()) > 5, f"no answer: {shown!r}"
    t.ask("/stats", "context:")
    second = t.ask("And who made you?")
    assert int(re.search(r"\((\d+) kept\)", t.ask("/stats", "context:")).group(1)) > 5
    t.ask("/set hide_thinking on", "(hide_thinking is on)")
    hidden = t.ask("/regenerate")
    assert "(thinking ...)" in hidden and "\x1b[2m" not in hidden, hidden
    t.ask(f"/save {home.path}/both.json", "(saved 4 messages")
    t.ask("/set", "temperature 0,", "top_p 0.95")  # generation_config.json's, but for --greedy
    assert t.leave() == 0
    # Reasoning taken back, the second answer is what it is with nothing kept.
    fresh = start(home, *flags)
    fresh.ask(f"/load {home.path}/both.json", "(4 messages from")
    again = fresh.ask("/regenerate")
    assert again.split("\n", 1)[1] == second.split("\n", 1)[1], (second, again)
    assert "kept" not in fresh.ask("/stats", "context:")
    assert fresh.leave() == 0
    # The same turn through a pipe gives the same text without colours, tags where they were.
    plain, _ = home.exo(*flags, stdin=b"What is your name?\n")
    assert "\x1b" not in plain and "<think>" in plain and "</think>" in plain, plain
    once, _ = home.exo(*flags, "--prompt", "What is your name?")
    assert once == plain, (once, plain)
    # What generation_config.json says is the default.
    assert json.loads((pathlib.Path("models/tiny/generation_config.json")).read_text())["temperature"] == 0.6
    t = start(home, "run", "tiny", "--max-generate-tokens", "2")
    t.ask("/set", "temperature 0.6, top_k 0, top_p 0.95,")
    assert t.leave() == 0


def echo_session(home):
    t = start(home, *DUMMY, columns=72, rows=60)
    t.ask("Hello there", "dummy: Hello")
    t.say("A line that goes on \\", "... ")
    t.ask("in the next one", "in the next one\ndummy", "in the next one\n")
    t.say('"""A text', "... ")
    t.ask('of two lines"""', "of two lines\n")
    t.ask("Grüße an 世界, and words enough to need more than a line of this terminal", "this terminal\n")
    t.paste("pasted:\n  1\n  2")
    t.ask("", "  2\n")
    t.paste("\n".join(map(str, range(100))))
    t.read_until("[paste 1")
    t.type(CTRL_C)
    t.read_until("leaves)\n")
    t.read_until(">>> ")
    t.ask("/set temperature 0.7", "(temperature is 0.7)")
    t.ask("/set temperature hot", "/set temperature hot:")
    t.ask("/set", "hide_thinking off")
    t.ask("/system Be brief.", "(system: Be brief.)")
    t.ask("/help", "is one message.")
    t.ask("/tell", "no such command")
    t.ask("/stats", "end of answer")
    assert t.leave() == 0
    return t.screen.text()


def shipped_session(home):
    t = start(home, "run", "tiny", "--greedy", "--max-generate-tokens", "120", columns=120, rows=60)
    t.ask("What is 12 + 30?")
    t.ask("/stats", "context:")
    t.ask("Which is larger, 52 or 29?")
    t.ask("/stats", "context:")
    t.ask("/set hide_thinking on", "(hide_thinking is on)")
    t.ask("/regenerate")
    t.ask("/reset", "(forgotten)")
    t.ask("Tell me a story about a king and a fox.")
    assert t.leave() == 0
    return t.screen.text()


def outline(screen):
    """A session without what the model says and without figures: those are other on other machines."""
    turns = []
    for turn in ("\n" + screen).split("\n>>> ")[1:]:
        line, _, answer = turn.partition("\n")
        if line.startswith("/") and line != "/regenerate":
            answer = re.sub(r"[\d.,]*\d ?(ms|s)?\b", "#", answer)
            answer = re.sub(r"(\| )[a-z ]+\n", r"\1#\n", answer)  # why the answer ended
            answer = "".join(answer.split())  # figures are wider on one day than on another
        else:
            thinks = re.match(r"\(thinking \.\.\.\)|‹", answer)
            answer = [thinks.group(0) if thinks else "", bool(answer.strip())]
        turns.append((line, answer))
    return turns


def screens(home):
    sessions = {"with the model that echoes": echo_session(home), "with the shipped model": shipped_session(home)}
    head = ("What a person sees (chat_test.py --record writes this file; ‹ › is dim). The test compares the first\n"
            "session whole; of the second all but the figures and what the model says.\n")
    if "--record" in sys.argv:
        SCREENS.write_text(head + "".join(f"\n=== {name}\n{text}\n" for name, text in sessions.items()), encoding="utf-8")
    recorded = dict(part.split("\n", 1) for part in SCREENS.read_text(encoding="utf-8").split("\n=== ")[1:])
    name = "with the model that echoes"
    assert recorded[name].rstrip("\n") == sessions[name], f"the screen is another:\n{sessions[name]}"
    name = "with the shipped model"
    assert outline(recorded[name].rstrip("\n")) == outline(sessions[name]), sessions[name]


def byte_tokenizer(folder, words):
    """A tokenizer of bytes with R1's special tokens, for a vocabulary of 512."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    vocab = {chr(b): b for b in plain}
    vocab.update({chr(256 + i): b for i, b in enumerate(rest)})
    added = [{"id": 256 + i, "content": w, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": not w.startswith("<think") and not w.startswith("</think")} for i, w in enumerate(words)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": level, "post_processor": None,
        "decoder": level, "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": []}}))


with Home() as home:
    byte_tokenizer(home.path / "tokenizer", ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>",
                                             "<｜Assistant｜>", "<think>", "</think>"])
    model = GOLDENS / "v3_bf16"
    home.exo("convert", model)
    home.exo("convert", "tiny")
    for part in (echo_chat, pastes, window, shipped_chat, screens):
        part(home)
        print("ok", part.__name__, flush=True)
    for part in (model_chat, thinking, full_context, piped):
        part(home, model)
        print("ok", part.__name__, flush=True)

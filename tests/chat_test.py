"""The interactive chat through a pseudo-terminal, with the model that echoes and with one of random weights."""
import os
import pty
import re
import select
import termios
import time

from exo_testing import EXO, GOLDENS, Home

CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    def __init__(self, home, *args):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.clear()
            os.environ.update(home.env, LANG="C.UTF-8")
            os.execv(EXO, [EXO, *map(str, args)])
        self.seen = b""

    def read_until(self, text, timeout=120):
        """What came up to and with `text` (without escape sequences but colours)."""
        end, pattern = time.time() + timeout, text.encode()
        while pattern not in self.plain(self.seen):
            assert time.time() < end, f"waited for {text!r}, saw {self.seen[-1500:]!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:
                    self.seen += b""
                    assert pattern in self.plain(self.seen), f"ended before {text!r}: {self.seen[-1500:]!r}"
        plain = self.plain(self.seen)
        at = plain.index(pattern) + len(pattern)
        shown, self.seen = plain[:at], plain[at:]
        return shown.decode(errors="replace")

    @staticmethod
    def plain(data):
        return re.sub(rb"\x1b\[[0-9;?]*[A-LN-Za-ln-z]|\x1b[()][A-Z0-9]|\x1b[=>]|\r", b"", data)

    def type(self, text):
        os.write(self.fd, text if isinstance(text, bytes) else text.encode())

    def say(self, line, answer):
        self.type(line + "\n")
        return self.read_until(answer)

    def leave(self):
        """Ctrl-D, once."""
        self.type(CTRL_D)
        code = self.end()
        assert code is not None, "Ctrl-D does not end the chat"
        return code

    def end(self):
        for _ in range(600):
            try:
                while select.select([self.fd], [], [], 0)[0] and os.read(self.fd, 65536):
                    pass
            except OSError:
                pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                settings = termios.tcgetattr(self.fd)  # the shell gets its terminal back as it was
                assert settings[3] & termios.ICANON and settings[6][termios.VEOF] == CTRL_D, settings
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        return None


def echo_chat(home):
    """Everything around a model."""
    t = Terminal(home, "run", "--inference-engine", "dummy")
    t.read_until("/help lists the commands")
    t.read_until(">>> ")
    t.say("Hello there", "dummy: Hello there")
    t.read_until(">>> ")
    t.say("/help", "/regenerate")
    t.read_until(">>> ")
    t.say("/nonsense", "no such command")
    t.say("/system You are terse.", "(system: You are terse.)")
    t.say("/system -", "(no system text)")
    t.say("/set temperature 0.3", "(temperature is 0.3)")
    t.say("/set top_p 7", "top_p: expected")
    t.say("/set", "temperature 0.3, top_k 0, top_p 1,")
    t.say("/set colour blue", "expected a name")
    t.say("/set think on", "(think is on)")
    t.say("/regenerate", "dummy: Hello there")
    t.say("one \\", "... ")
    t.say("two", "dummy: one \ntwo")
    t.say('"""first', "... ")
    t.say('second"""', "dummy: first\nsecond")
    t.say("Grüße, 世界", "dummy: Grüße, 世界")
    t.say("<think>because</think>so", "\x1b[2mdummy: <think>because</think>so".replace("\x1b[2m", ""))
    saved = home.path / "saved.json"
    t.say(f"/save {saved}", "(saved 10 messages")
    t.say("/reset", "(forgotten)")
    t.say("/regenerate", "(nothing to answer yet)")
    t.say(f"/load {saved}", "(10 messages from")
    t.say(f"/load {home.path}/none.json", "none.json")
    t.say("/stats", "(no answer yet)")
    t.read_until(">>> ")
    t.type("half a line")
    t.type(CTRL_C)
    t.read_until("(Ctrl-D or /exit leaves)")
    t.read_until(">>> ")
    t.type("\x1b[A")  # the history brings the last line back
    t.read_until("/stats")
    t.type("\n")
    t.read_until("(no answer yet)")
    t.say("bye", "dummy: bye")
    t.say("/stats", "end of answer")
    t.read_until(">>> ")
    t.type("\0")  # Ctrl-Space is no Ctrl-D
    assert t.leave() == 0
    history = home.path / "home" / "history"
    assert "Hello" in history.read_text() and history.stat().st_mode & 0o077 == 0

    t = Terminal(home, "run", "--inference-engine", "dummy")  # history outlives the program
    t.read_until(">>> ")
    t.type("\0")  # neither is one at the first prompt
    t.type("\x1b[A")
    t.read_until("/stats")
    t.type(CTRL_C)
    t.read_until("leaves)")
    t.say("/exit", "")
    assert t.end() == 0


def model_chat(home, model):
    """A real engine: turns reuse the cache, Ctrl-C stops an answer and keeps the chat."""
    t = Terminal(home, "run", model, "--max-generate-tokens", "12", "--greedy", "--ignore-eos",
                 "--tokenizer", home.path / "tokenizer", "--chat-format", "deepseek-r1")
    t.read_until(">>> ")
    t.say("Hi", ">>> ")
    first = t.say("/stats", "token limit")
    n_prompt = int(re.search(r"(\d+) prompt tokens,", first).group(1))
    assert "kept" not in first
    t.read_until(">>> ")
    t.say("More", ">>> ")
    second = t.say("/stats", "token limit")
    # R1's template drops the reasoning (here the whole answer, which never left it): what comes before stays.
    kept = int(re.search(r"\((\d+) kept\)", second).group(1))
    assert n_prompt - 3 <= kept <= n_prompt, second
    t.read_until(">>> ")
    t.say("/set max_tokens 100000", "(max_tokens is")
    t.read_until(">>> ")
    t.type("Count\n")
    t.read_until("\x1b[2m")  # dimmed: the answer has begun, and takes half a second to fill the context
    t.type(CTRL_C)
    t.read_until("(stopped)")
    t.read_until(">>> ")
    t.say("/set max_tokens 3", "(max_tokens is 3)")
    t.read_until(">>> ")
    t.say("Still there?", ">>> ")
    t.say("/stats", "3 tokens")
    assert t.leave() == 0


def full_context(home, model):
    """A context that fills in mid-answer ends there, and nothing is lost."""
    t = Terminal(home, "run", model, "--context", "64", "--greedy", "--ignore-eos")
    t.read_until(">>> ")
    t.say("A question", "the context is full")
    t.read_until(">>> ")
    t.say("Another one", "(this message is not part of the conversation)")
    t.read_until(">>> ")
    t.say(f"/save {home.path}/full.json", "(saved 2 messages")
    t.say("/reset", "(forgotten)")
    t.say("/set max_tokens 4", "(max_tokens is 4)")
    t.read_until(">>> ")
    t.say("Hi", ">>> ")
    assert t.leave() == 0


def piped(home, model):
    """No terminal: plain text, one turn a line."""
    out, err = home.exo("run", "--inference-engine", "dummy", stdin=b"first\n/set\nsecond\n")
    assert out == "dummy: first\ndummy: second\n" and "\x1b" not in out + err, (out, err)
    out, err = home.exo("run", model, "--max-generate-tokens", 4, "--seed", 5, stdin=b"Hi\n")
    again, _ = home.exo("run", model, "--max-generate-tokens", 4, "--seed", 5, "--threads", 1, stdin=b"Hi\n")
    assert out == again and out, (out, again)


def shipped_chat(home):
    """The model that comes with exo: it reasons, and the template drops that from the history."""
    flags = ["run", "tiny", "--greedy", "--max-generate-tokens", "80"]
    t = Terminal(home, *flags)
    t.read_until(">>> ")
    shown = t.say("What is your name?", ">>> ")
    assert "\x1b[2m" in shown and "\x1b[0m" in shown, f"reasoning is not dimmed: {shown!r}"
    assert "<think>" not in shown and "</think>" not in shown, shown
    assert len(shown.split("\x1b[0m")[1].strip()) > 5, f"no answer: {shown!r}"
    t.say("/stats", "end of answer")
    t.read_until(">>> ")
    t.say("And who made you?", ">>> ")
    assert int(re.search(r"\((\d+) kept\)", t.say("/stats", "context:")).group(1)) > 5
    t.read_until(">>> ")
    t.say("/set hide_thinking on", "(hide_thinking is on)")
    t.read_until(">>> ")
    hidden = t.say("/regenerate", ">>> ")
    assert "(thinking ...)" in hidden and "\x1b[2m" not in hidden, hidden
    assert t.leave() == 0
    # The same turns through a pipe give the same text without colours, tags where they were.
    plain, _ = home.exo(*flags, stdin=b"What is your name?\n")
    assert "\x1b" not in plain and "<think>" in plain and "</think>" in plain, plain
    once, _ = home.exo(*flags, "--prompt", "What is your name?")
    assert once == plain, (once, plain)


def thinking(home):
    out, _ = home.exo("run", "--inference-engine", "dummy", "--prompt", "x")
    assert out == "dummy: x\n"


def byte_tokenizer(folder, words):
    """A tokenizer of bytes with R1's special tokens, for a vocabulary of 512."""
    import json
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
    for part in (echo_chat, thinking, shipped_chat):
        part(home)
    for part in (model_chat, full_context, piped):
        part(home, model)
print("chat: echo, model, full context, pipes")

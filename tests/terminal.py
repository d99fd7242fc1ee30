"""A person at a terminal: a program under a pseudo-terminal, and what its screen shows."""
import codecs
import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
import unicodedata

CTRL_C, CTRL_D = b"\x03", b"\x04"
TIMEOUT_S = 300  # nothing waits that long but what is broken
# One escape sequence, or one control character, or text.
PIECE = re.compile(r"\x1b\[([?<>=]?)([0-9;]*)([@-~])|\x1b[()][A-Z0-9]|\x1b[^\[()]|[\x00-\x1f\x7f]|[^\x00-\x1f\x7f]")


class Screen:
    """As much of an xterm as libedit and exo use; what scrolls away is kept. Dim text is written ‹so›."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.lines = [[]]  # every line since the beginning, cells (character, dim)
        self.top, self.row, self.column = 0, 0, 0  # row is counted from the beginning, too
        self.dim = self.insert = self.wraps = False
        self.decode, self.rest = codecs.getincrementaldecoder("utf-8")(errors="replace").decode, ""

    def feed(self, data):
        text = self.rest + self.decode(data)
        # A sequence that isn't whole waits for the rest of it.
        cut = re.search(r"\x1b(\[[?<>=]?[0-9;]*|[()])?$", text)
        self.rest = text[cut.start():] if cut else ""
        for m in PIECE.finditer(text[:cut.start()] if cut else text):
            if m.group(3):
                if not m.group(1):
                    self.control([int(n or 0) for n in m.group(2).split(";")], m.group(3))
            elif m.group(0)[0] != "\x1b":
                self.put(m.group(0))

    def line(self):
        while self.row >= len(self.lines):
            self.lines.append([])
        self.top = max(self.top, self.row - self.rows + 1)
        return self.lines[self.row]

    def put(self, c):
        if c == "\n":
            self.row, self.wraps = self.row + 1, False
            self.line()
        elif c == "\r":
            self.column, self.wraps = 0, False
        elif c == "\b":
            self.column, self.wraps = max(0, self.column - 1), False
        elif c == "\t":
            self.column = min(self.columns - 1, self.column // 8 * 8 + 8)
        elif c >= " " and c != "\x7f":
            self.character(c)

    def character(self, c):
        width = 2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1
        if self.wraps or self.column + width > self.columns:
            self.row, self.column, self.wraps = self.row + 1, 0, False
        line = self.line()
        line += [(" ", False)] * (self.column - len(line))
        cells = [(c, self.dim)] + [("", self.dim)] * (width - 1)
        line[self.column:self.column + (0 if self.insert else width)] = cells
        del line[self.columns:]
        self.column += width
        self.wraps = self.column == self.columns
        self.column -= self.wraps

    def control(self, n, kind):
        line, count = self.line(), max(1, n[0])
        if kind in "ABCDGH":
            self.wraps = False
        if kind == "A":
            self.row = max(self.top, self.row - count)
        elif kind == "B":
            self.row += count
        elif kind == "C":
            self.column = min(self.columns - 1, self.column + count)
        elif kind == "D":
            self.column = max(0, self.column - count)
        elif kind == "G":
            self.column = count - 1
        elif kind == "H":
            self.row, self.column = self.top + count - 1, (max(1, n[1]) if len(n) > 1 else 1) - 1
        elif kind == "J":
            del line[self.column:], self.lines[self.row + 1:]
        elif kind == "K":
            del line[0 if n[0] == 2 else self.column:]
        elif kind == "P":
            del line[self.column:self.column + count]
        elif kind == "@":
            line[self.column:self.column] = [(" ", False)] * count
        elif kind == "X":
            line[self.column:self.column + count] = [(" ", False)] * count
        elif kind in "hl":
            self.insert = (kind == "h") if n[0] == 4 else self.insert
        elif kind == "m":
            self.dim = n[-1] == 2
        else:
            raise AssertionError(f"a control sequence that this terminal doesn't know: {n} {kind}")

    def text(self):
        out, dim = [], False
        for line in self.lines:
            for c, is_dim in line:
                if is_dim != dim and c.strip():
                    out.append("‹" if is_dim else "›")
                    dim = is_dim
                out.append(c)
            out.append("\n")
        if dim:
            out.append("›")
        text = "".join(out)
        text = re.sub(r"(\s+)›", r"›\1", text)  # closed where the words end
        return "\n".join(line.rstrip() for line in text.split("\n")).rstrip("\n")


class Terminal:
    def __init__(self, home, *command, columns=100, rows=40, env=None):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.environ.clear()
            os.environ.update(home.env, LANG="C.UTF-8", **(env or {}))
            try:
                os.execvp(str(command[0]), [str(c) for c in command])
            finally:
                os._exit(127)
        self.seen, self.screen = b"", Screen(columns, rows)

    def resize(self, columns, rows):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_some(self, timeout):
        """False when the program has closed the terminal."""
        if not select.select([self.fd], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            data = b""
        self.seen += data
        self.screen.feed(data)
        return bool(data)

    def read_until(self, text, timeout=TIMEOUT_S):
        """What came up to and with `text` (without escape sequences but colours)."""
        end, pattern = time.monotonic() + timeout, text.encode()
        while pattern not in self.plain(self.seen):
            open_still = self.read_some(1)
            assert open_still or pattern in self.plain(self.seen), f"ended before {text!r}: {self.seen[-1500:]!r}"
            assert time.monotonic() < end, f"waited for {text!r}, saw {self.seen[-1500:]!r}"
        plain = self.plain(self.seen)
        at = plain.index(pattern) + len(pattern)
        shown, self.seen = plain[:at], plain[at:]
        return shown.decode(errors="replace")

    @staticmethod
    def plain(data):
        return re.sub(rb"\x1b\[[0-9;?]*[A-LN-Za-ln-z]|\x1b[()][A-Z0-9]|\x1b[=>]|\r", b"", data)

    def type(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        while data:  # the terminal takes a few kilobytes at a time, and only if somebody reads what it shows
            _, writable, _ = select.select([self.fd], [self.fd], [], 1)
            if writable:
                data = data[os.write(self.fd, data[:1024]):]
            self.read_some(0)

    def paste(self, text):
        self.type(b"\x1b[200~" + (text if isinstance(text, bytes) else text.encode()) + b"\x1b[201~")

    def say(self, line, answer):
        """Types a line; what came up to and with `answer`."""
        self.type(line + "\n")
        return self.read_until(answer)

    def ask(self, line, *answers, prompt=">>> "):
        """Types a line and waits for each of `answers` in turn, then for the next prompt; all that came."""
        self.type(line + "\n")
        return "".join(self.read_until(text) for text in (*answers, prompt))

    def leave(self):
        """Ctrl-D, once."""
        self.type(CTRL_D)
        return self.end()

    def end(self):
        """The exit code; the terminal must be as it was."""
        end = time.monotonic() + TIMEOUT_S
        while self.read_some(1):
            assert time.monotonic() < end, f"still running: {self.seen[-1500:]!r}"
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
        _, status = os.waitpid(self.pid, 0)
        settings = termios.tcgetattr(self.fd)
        assert settings[3] & termios.ICANON and settings[6][termios.VEOF] == CTRL_D, settings
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)

"""Token batches: rows of plain tales, story turns and exercises, each with a mask of the tokens that count in the loss."""
import random

import torch
from tokenizers import Tokenizer

import corpus
import exercises
import stories

BOS, EOS = 0, 1
COMPOSED = 0.72  # share of story turns that a program composed; the others are passages of the books
TWO_TURNS = 0.06  # share of exercises that follow an earlier, answered one


class Text:
    """The tokenizer, and chat turns in R1's format."""

    def __init__(self, path):
        self.tok = Tokenizer.from_file(path)
        self.letter = {c: self.tok.token_to_id(c) for c in map(chr, range(33, 127))}

    def ids(self, text):
        """What stands between \\x01 and \\x02 becomes one token a character."""
        out = []
        for i, part in enumerate(text.split("\x01")):
            spelled, rest = part.split("\x02") if i else ("", part)
            out += [self.letter[c] for c in spelled]
            if rest:
                out += self.tok.encode(rest).ids
        return out

    def prompt(self, ask):
        return self.ids(f"<｜User｜>{ask}<｜Assistant｜><think>\n")

    def reply(self, thoughts, answer):
        return self.ids(f"{thoughts}\n</think>\n\n{answer}") + [EOS]

    def past(self, ask, answer):
        """An earlier turn: the template drops its thoughts."""
        return self.ids(f"<｜User｜>{ask}<｜Assistant｜>\n\n{answer}") + [EOS]

    def plain(self, ids):
        return self.tok.decode(ids, skip_special_tokens=True)


class Data:
    def __init__(self, folder, text, seed):
        self.text, self.rng = text, random.Random(seed)
        self.tales = corpus.books(folder)
        self.stream = []  # all tales, shuffled
        order = self.tales[:]
        random.Random(0).shuffle(order)
        encoded = text.tok.encode_batch(["\n\n".join(p) for _, p in order])
        for e in encoded:
            self.stream += [BOS] + e.ids + [EOS]
        self.stream = torch.tensor(self.stream)
        self.size = [sum(map(len, p)) for _, p in self.tales]
        self.share = corpus.shares(self.tales, self.size)
        self.kinds = list(exercises.KINDS)
        self.weigh({})

    def weigh(self, weights):
        self.weights = [weights.get(k, 1.0) for k in self.kinds]

    def window(self, t):
        at = self.rng.randrange(len(self.stream) - t - 1)
        return self.stream[at:at + t + 1]

    def turn(self):
        composed = self.rng.random() < COMPOSED
        while True:
            found = stories.story(self.rng) if composed else corpus.story_turn(self.rng, self.rng.choices(self.tales, self.size)[0], self.share)
            if found:
                ask, thoughts, answer = found
                return [BOS] + self.text.prompt(ask), self.text.reply(thoughts, answer)

    def exercise(self, kind=None, test=False):
        kind = kind or self.rng.choices(self.kinds, self.weights)[0]
        ask, thoughts, answer = exercises.exercise(self.rng, kind, test)
        before = [BOS]
        if not test and self.rng.random() < TWO_TURNS:
            a, _, b = exercises.exercise(self.rng, self.rng.choice(self.kinds))
            before += self.text.past(a, b)
        return before + self.text.prompt(ask), self.text.reply(thoughts, answer)

    def padded(self, pairs, step):
        """Rows of (prompt, reply) as long as the longest, up to a multiple of step; only replies count."""
        t = max(len(p) + len(r) for p, r in pairs)
        t = (t + step - 1) // step * step + 1
        ids = torch.full((len(pairs), t), EOS)
        wanted = torch.zeros((len(pairs), t), dtype=torch.bool)
        for i, (p, r) in enumerate(pairs):
            ids[i, :len(p) + len(r)] = torch.tensor(p + r)
            wanted[i, len(p):len(p) + len(r)] = True
        return ids, wanted

    def batch(self, rows, t, exercises, turns):
        """ids [rows, t+1], wanted, and the attention mask [rows, 1, t, t] to add: documents in one row do not see each other.

        exercises: their share of the rows; turns: the share of story turns in the rest, the others being plain tales."""
        ids = torch.full((rows, t + 1), EOS)
        wanted = torch.zeros((rows, t + 1), dtype=torch.bool)
        document = torch.zeros((rows, t + 1), dtype=torch.long)
        first, second = round(rows * exercises), round(rows * (exercises + (1 - exercises) * turns))
        for r in range(rows):
            if r >= second:
                ids[r], wanted[r] = self.window(t), True
                continue
            at, number, misfits = 0, 0, 0
            while at <= t - 16 and misfits < 4:
                prompt, reply = self.exercise() if r < first else self.turn()
                end = at + len(prompt) + len(reply)
                if end > t + 1:
                    misfits += at > 0
                    continue
                ids[r, at:end] = torch.tensor(prompt + reply)
                wanted[r, at + len(prompt):end] = True
                number += 1
                document[r, at:end] = number
                at = end
            document[r, at:] = number + 1
        d = document[:, :-1]
        seen = (d[:, :, None] == d[:, None]) & torch.ones(t, t, dtype=torch.bool).tril()
        return ids, wanted, torch.zeros(rows, 1, t, t).masked_fill(~seen[:, None], -1e30)

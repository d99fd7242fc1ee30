"""Trains the byte-level BPE and writes tokenizer.json in the shape of DeepSeek-R1's."""
import argparse
import json
import pathlib
import random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import corpus
import exercises

SIZE = 4096
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
# R1's further tokens in R1's order; only <|EOT|> is flagged special there.
MORE = ["<think>", "</think>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>",
        "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
        "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "<｜tool▁sep｜>"]
WORDS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--corpus", required=True)
    args.add_argument("--out", required=True, help="tokenizer.json to write")
    args = args.parse_args()

    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.Sequence([])
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),  # R1 has \p{N}{1,3}: digits are easier one by one
        pre_tokenizers.Split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
        pre_tokenizers.Split(Regex(WORDS.replace(r"\r\n", "\r\n")), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()

    rng = random.Random(7)
    text = [p for _, paragraphs in corpus.books(args.corpus) for p in paragraphs]
    for _ in range(40000):
        ask, thoughts, answer = exercises.exercise(rng, rng.choice(list(exercises.KINDS)))
        text += [ask, thoughts.translate({1: " ", 2: " "}), answer.translate({1: " ", 2: " "})]
    trainer = trainers.BpeTrainer(vocab_size=SIZE - len(MORE), special_tokens=[BOS, EOS, PAD],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator(text, trainer)

    data = json.loads(tok.to_str())
    assert len(data["model"]["vocab"]) == SIZE - len(MORE)
    flags = dict(single_word=False, lstrip=False, rstrip=False)
    data["added_tokens"] = [dict(id=i, content=t, **flags, normalized=False, special=True) for i, t in enumerate([BOS, EOS, PAD])]
    data["added_tokens"] += [dict(id=SIZE - len(MORE) + i, content=t, **flags, normalized=True, special=t == "<|EOT|>")
                             for i, t in enumerate(MORE)]
    del data["model"]["ignore_merges"]  # not in R1's file, and false
    pathlib.Path(args.out).write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
    tok = Tokenizer.from_file(args.out)
    sample = "".join(text[:2000])
    print(tok.get_vocab_size(), "entries;", len(sample) / len(tok.encode(sample).ids), "characters a token")


if __name__ == "__main__":
    main()

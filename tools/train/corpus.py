"""The fairy-tale books as clean text, split into tales, and as turns: "tell me a story about ...", "read me ..."."""
import collections
import pathlib
import random
import re

import stories

HELD_OUT = "the-brown-fairy-book"  # never trained on; used for perplexity

# What a story can be asked about. Plurals and a few other forms count for their noun.
SUBJECTS = """king queen prince princess wolf fox bear lion dragon giant witch fairy dwarf cat dog horse bird fish
frog mouse snake donkey goat sheep goose hen cock eagle raven crow hare monkey crab tortoise swan bull cow pig deer stag
merchant soldier fisherman shepherd miller tailor hunter farmer gardener sailor robber beggar magician wizard ogre troll
mermaid emperor sultan knight peasant boy girl son daughter sister brother stepmother grandmother castle forest ring
sword tree apple rose garden mountain river sea island ship well mill palace cave tower bridge
scarecrow lark ant bee spider nightingale ass wife mother father""".split()
SUBJECTS = [s for s in SUBJECTS if s.isalpha()]
IRREGULAR = {"wolves": "wolf", "mice": "mouse", "geese": "goose", "fairies": "fairy", "witches": "witch",
             "fishermen": "fisherman", "wives": "wife", "genii": "genie"}
FORM = {**{s: s for s in SUBJECTS}, **{s + "s": s for s in SUBJECTS}, **IRREGULAR}


def straighten(text):
    """One kind of quotation mark: \" around speech, ' in words."""
    text = text.replace("\u201c", '"').replace("\u201d", '"').replace("\u2018", "'").replace("\u2019", "'")
    text = text.replace("\u2014", "--").replace("_", "").replace("``", '"').replace("`", "'")
    text = re.sub(r"(?<![\w'])'(?=[\w'\"-])", '"', text)            # opens speech
    text = re.sub(r"(?<=[.,!?;:\-\")])'(?!\w)", '"', text)          # closes speech
    text = re.sub(r'"{2,}', '"', text)
    text = re.sub(r"\((?:\d+|[*])\)|\[[^\]]*\]", "", text)           # notes
    return re.sub(r"[ \t]+", " ", text).strip()


def is_title(line):
    if len(line) > 70 or line[-1] in ".,!?;:\"'-)" or line[0] in "\"'(" or not line[0].isalpha():
        return False
    return all(w[0].isupper() for w in re.findall(r"[A-Za-z']+", line) if len(w) > 4)


def title_case(line):
    small = {"the", "of", "and", "a", "an", "to", "in", "who", "with", "for", "on", "or", "that", "what", "from"}
    words = [w.lower() if w.lower() in small else w.capitalize() for w in line.split()]
    return " ".join(words[:1] + words[1:]).replace("the ", "The ", 1) if words[0] == "the" else " ".join(words)


def tales(path):
    """[(title, [paragraph, ...]), ...] of one book; contents, notes and sources are dropped."""
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        line = straighten(line)
        if not line or re.match(r"^[(\[]", line) or re.match(r"^[IVXLC]+\.?$", line):
            continue
        if is_title(line):
            out.append((title_case(re.sub(r"^\d+\.\s*", "", line)), []))
        elif out and len(line) > 20 and line.upper() != line:
            out[-1][1].append(line)
    skip = ("Preface", "Introduction", "Bibliotheque", "Contents")
    return [(t, p) for t, p in out if sum(map(len, p)) > 1500 and not t.startswith(skip)]


def books(folder, held_out=False):
    """The tales of every training book, or of the held-out one."""
    paths = sorted(pathlib.Path(folder).glob("the-*.txt"))
    return [t for p in paths if (p.stem == HELD_OUT) == held_out for t in tales(p)]


def subjects(text):
    count = collections.Counter(FORM[w] for w in re.findall(r"[a-z]+", text.lower()) if w in FORM)
    return [s for s, n in count.most_common()]


def an(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


ASK = ["Read me something about {}.", "Read me an old tale about {}.", "Read to me about {}.", "Tell me an old tale about {}.",
       "An old tale about {}, please.", "What do the old books tell about {}?"]
ASK_ANY = ["Read me something.", "Read me an old tale.", "Tell me an old tale."]
# Passages that are asked for in the words of stories.py, "tell me a story about ...": their share, and the share of all
# passages that those about one subject may be. The books are full of kings; the composed tales are about all alike, and
# should be what is mostly told of each.
AS_STORIES, OF_ONE_SUBJECT = 0.6, 0.012


def passage(rng, tale, max_chars=1100):
    """(text, its subjects with the main one first, whether it opens the tale), or None where it has no subject."""
    _, paragraphs = tale
    start = 0 if rng.random() < 0.4 else rng.randrange(len(paragraphs))
    text, want = [], rng.randrange(300, max_chars)
    for p in paragraphs[start:]:
        if text and sum(map(len, text)) + len(p) > want:
            break
        text.append(p)
    answer = "\n\n".join(text)
    if not 200 < len(answer) < 1800 or answer[0] in "\"'":
        return None
    found = subjects(answer)
    main = next((s for s in found if s in subjects(text[0][:300])), None)
    if main is None:
        return None
    return answer, [main] + [s for s in found if s != main][:3], start == 0


def shares(tales, size, n=4000):
    """subject -> share of the passages about it."""
    rng = random.Random(7)
    found = filter(None, (passage(rng, t) for t in rng.choices(tales, size, k=n)))
    count = collections.Counter(subjects[0] for _, subjects, _ in found)
    return {s: k / count.total() for s, k in count.items()}


def story_turn(rng, tale, share):
    """(question, thoughts, answer): a passage of the tale that opens with its subject, or None. share: as of shares()."""
    title, found = tale[0], passage(rng, tale)
    if found is None:
        return None
    answer, (main, *others), opens = found
    thoughts = f"From a book, about {an(main)}" + (", with " + ", ".join(map(an, others)) if others else "") + "."
    as_story = rng.random() < min(AS_STORIES, OF_ONE_SUBJECT / share.get(main, 1e-3))
    any_of, asks = (stories.ASK_ANY, stories.ASK) if as_story else (ASK_ANY, ASK)
    pick = rng.random()
    if pick < 0.08 and opens:
        ask = rng.choice(any_of)
    elif pick < 0.2 and opens and not title.startswith("Chapter"):
        ask = rng.choice(asks).format(re.sub(r"^The (Story|Tale|History|Adventures) of ", "", title))
    elif pick < 0.5 and others and not as_story:
        ask = rng.choice(asks).format(an(main) + " and " + an(others[0]))
    else:
        ask = rng.choice(asks).format(an(main))
    return ask, thoughts, answer


if __name__ == "__main__":
    import sys
    rng = random.Random(1)
    every = books(sys.argv[1])
    print(len(every), "tales", sum(len(x) for _, p in every for x in p), "characters")
    print([t for t, _ in every][::9])
    share = shares(every, [sum(map(len, p)) for _, p in every])
    turns = [story_turn(rng, rng.choice(every), share) for _ in range(300)]
    print(sum(t is None for t in turns), "of 300 passages unsuited")
    for t in [t for t in turns if t][:4]:
        print(t)

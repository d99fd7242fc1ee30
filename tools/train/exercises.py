"""Exercises with visible reasoning: kinds of (question, thoughts, answer), made from a seed.

Every kind draws operands; whether they belong to training or to test is decided by a hash of the kind and the
operands (not of the wording), so no tested case is ever trained on, in whatever words.
"""
import hashlib
import random
import re

TEST_PERCENT = 15
# Of the words that came with the third training, most are kept for the test of reversing: they are spelled in other
# exercises only.
LATER_REVERSED_PERCENT = 60


def kept(kind, *operands):
    later = kind == "reversing words" and operands[-1] in LATER_WORDS
    digest = hashlib.sha256(repr((kind, operands)).encode()).digest()
    return digest[0] * 256 + digest[1] < 65536 * (LATER_REVERSED_PERCENT if later else TEST_PERCENT) // 100


def is_test(kind, *operands):
    # 7 x 8 is also asked as 8 x 7: a test only where both are kept.
    both = kind == "multiplication" and operands[0] < 10
    return kept(kind, *operands) and (not both or kept(kind, *reversed(operands)))


# ---------------------------------------------------------------- sums, digit by digit
# The steps begin with the sum itself, so that the many wordings are understood once and the digits are then always taken
# from the same place.

PLACES = ["ones", "tens", "hundreds", "thousands"]


def digits(n):
    return [int(c) for c in str(n)[::-1]]


def add_steps(a, b):
    x, y, carry, out = digits(a), digits(b), 0, []
    for i in range(max(len(x), len(y))):
        p, q = (x[i] if i < len(x) else 0), (y[i] if i < len(y) else 0)
        s = p + q + carry
        term = f"{PLACES[i]} {p}+{q}" + (f"+{carry}" if carry else "") + f"={s}"
        carry = s // 10
        out.append(term + (f" carry {carry}" if carry else ""))
    return f"{a}+{b}: " + "; ".join(out)


def sub_steps(a, b):
    x, y, borrow, out = digits(a), digits(b), 0, []
    for i in range(len(x)):
        p, q = x[i], (y[i] if i < len(y) else 0)
        term = f"{PLACES[i]} "
        if p - q - borrow < 0:
            term += f"1{p}-{q}" + (f"-{borrow}" if borrow else "") + f"={p + 10 - q - borrow} borrow 1"
            borrow = 1
        else:
            term += f"{p}-{q}" + (f"-{borrow}" if borrow else "") + f"={p - q - borrow}"
            borrow = 0
        out.append(term)
    return f"{a}-{b}: " + "; ".join(out)


def mul_steps(a, d):
    carry, out = 0, []
    for i, p in enumerate(digits(a)):
        term = f"{PLACES[i]} {p}x{d}={p * d}"
        s = p * d + carry
        if carry:
            term += f", +{carry}={s}"
        carry = s // 10
        out.append(term + (f" carry {carry}" if carry else ""))
    return f"{a}x{d}: " + "; ".join(out)


SUM_WIDTHS = [1, 2, 2, 2, 2, 2, 3]


def number(rng, widths):
    w = rng.choice(widths)
    return rng.randrange(10 ** (w - 1) if w > 1 else 0, 10 ** w)


ADD = ["What is {a} + {b}?", "{a}+{b}=", "{a} + {b} = ?", "{a} + {b}", "Compute {a} plus {b}.", "Add {a} and {b}.",
       "What is {a} plus {b}?", "How much is {a} + {b}?", "Calculate {a} + {b}.", "what is {a}+{b}", "{a} + {b} =",
       "What is the sum of {a} and {b}?", "Please add {a} to {b}.", "What's {a} + {b}?", "What does {a} + {b} make?"]
SUB = ["What is {a} - {b}?", "{a}-{b}=", "{a} - {b} = ?", "{a} - {b}", "Compute {a} minus {b}.",
       "Subtract {b} from {a}.", "What is {a} minus {b}?", "How much is {a} - {b}?", "Calculate {a} - {b}.",
       "what is {a}-{b}", "{a} - {b} =", "Take {b} away from {a}.", "What's {a} - {b}?",
       "What is the difference between {a} and {b}?"]
MUL = ["What is {a} x {b}?", "{a}*{b}=", "{a} x {b} = ?", "{a} * {b}", "Compute {a} times {b}.",
       "Multiply {a} by {b}.", "What is {a} times {b}?", "How much is {a} x {b}?", "Calculate {a} * {b}.",
       "what is {a}*{b}", "What's {a} × {b}?", "What is the product of {a} and {b}?", "What is {a} * {b}?"]
PCT = ["What is {p}% of {n}?", "{p}% of {n}", "{p}% of {n} = ?", "Compute {p}% of {n}.", "How much is {p}% of {n}?",
       "Calculate {p} percent of {n}.", "What is {p} percent of {n}?", "what is {p}% of {n}", "Find {p}% of {n}.",
       "What's {p}% of {n}?"]


def addition(rng):
    a, b = number(rng, SUM_WIDTHS), number(rng, SUM_WIDTHS)
    return (min(a, b), max(a, b)), rng.choice(ADD).format(a=a, b=b), add_steps(a, b), f"{a} + {b} = {a + b}"


def subtraction(rng):
    a, b = number(rng, SUM_WIDTHS), number(rng, SUM_WIDTHS)
    if a < b:
        a, b = b, a
    return (a, b), rng.choice(SUB).format(a=a, b=b), sub_steps(a, b), f"{a} - {b} = {a - b}"


def multiplication(rng):
    a, d = number(rng, [1, 2, 2, 2, 2, 3]), rng.randrange(2, 10)
    left, right = (a, d) if rng.random() < 0.8 else (d, a)
    return (a, d), rng.choice(MUL).format(a=left, b=right), mul_steps(a, d), f"{left} x {right} = {a * d}"


def percentage(rng):
    p = 5 * rng.randrange(1, 20)
    n = 10 * rng.randrange(1, 121) if p % 10 == 0 else 20 * rng.randrange(1, 61)
    ten, tens, steps, parts = n // 10, p // 10, [f"10% is {n // 10}"], []
    if tens:
        if tens > 1:
            steps.append(f"{tens}0%: {mul_steps(ten, tens)}; {ten * tens}")
        parts.append(ten * tens)
    if p % 10:
        steps.append(f"5%: half of {ten}={ten // 2}")
        parts.append(ten // 2)
    if len(parts) == 2:
        steps.append(f"{p}%: " + add_steps(*parts))
    return (p, n), rng.choice(PCT).format(p=p, n=n), ". ".join(steps), f"{p}% of {n} is {sum(parts)}"


# ---------------------------------------------------------------- comparing

LARGER = ["Which is larger, {a} or {b}?", "Which is bigger: {a} or {b}?", "Which number is greater, {a} or {b}?",
          "What is larger, {a} or {b}?", "Compare {a} and {b}. Which is larger?", "which is bigger, {a} or {b}",
          "Which of {a} and {b} is the larger?"]
SMALLER = ["Which is smaller, {a} or {b}?", "Which number is smaller: {a} or {b}?", "Which is less, {a} or {b}?",
           "What is smaller, {a} or {b}?", "Which of {a} and {b} is the smaller?"]
IS_MORE = ["Is {a} larger than {b}?", "Is {a} greater than {b}?", "Is {a} more than {b}?", "Is {a} bigger than {b}?"]
IS_LESS = ["Is {a} smaller than {b}?", "Is {a} less than {b}?"]


def compare_steps(a, b):
    x, y = digits(a), digits(b)
    sign = ">" if a > b else "<" if a < b else "="
    if len(x) != len(y):
        return f"{a},{b}: digits {len(x)}{sign}{len(y)}; {a}{sign}{b}"
    out = []
    for i in reversed(range(len(x))):
        s = ">" if x[i] > y[i] else "<" if x[i] < y[i] else "="
        out.append(f"{PLACES[i]} {x[i]}{s}{y[i]}")
        if s != "=":
            break
    return f"{a},{b}: " + "; ".join(out) + f"; {a}{sign}{b}"


def comparison(rng):
    a, b = number(rng, [1, 2, 2, 2, 2, 3]), number(rng, [1, 2, 2, 2, 2, 3])
    if rng.random() < 0.4:  # the same length, often the same first digit
        w = 10 ** (len(str(a)) - 1)
        b = a // w * w + rng.randrange(w) if rng.random() < 0.5 else rng.randrange(w if w > 1 else 0, 10 * w)
    thoughts, pair = compare_steps(a, b), (min(a, b), max(a, b))
    kind = rng.randrange(4)
    if a == b and kind < 2:
        return pair, rng.choice(LARGER + SMALLER).format(a=a, b=b), thoughts, f"{a} and {b} are equal."
    if kind == 0:
        return pair, rng.choice(LARGER).format(a=a, b=b), thoughts, f"{max(a, b)} is larger."
    if kind == 1:
        return pair, rng.choice(SMALLER).format(a=a, b=b), thoughts, f"{min(a, b)} is smaller."
    yes, words = (a > b, IS_MORE) if kind == 2 else (a < b, IS_LESS)
    return pair, rng.choice(words).format(a=a, b=b), thoughts, "Yes." if yes else "No."


# ---------------------------------------------------------------- letters and words

WORDS = """apple banana cherry orange lemon strawberry grape peach plum pear melon berry onion carrot potato tomato bread
butter cheese honey sugar salt pepper water milk coffee table chair window door house garden flower tree forest river
mountain valley ocean island castle tower bridge road street village city country king queen prince princess knight
soldier sword shield crown dragon giant witch wizard fairy wolf bear lion tiger horse sheep goat rabbit mouse cat dog bird
eagle raven swan goose duck chicken fish whale snake frog spider butterfly little happy angry brave clever silver golden
green yellow purple black white brown summer winter spring autumn morning evening night monday friday sunday january
march july august letter number paper pencil book story teacher school student computer model keyboard music guitar piano
drum trumpet mother father sister brother daughter friend neighbor doctor farmer sailor hunter miller tailor baker
butcher merchant robber beggar picture mirror candle lantern hammer ladder basket bottle kettle spoon knife fork plate
blanket pillow button needle thread ribbon jacket shirt shoe boot hat glove pocket wallet money penny dollar market
shop kitchen cellar attic ceiling floor corner garage engine wheel wagon carriage train airplane rocket planet moon star
cloud thunder lightning rain snow wind storm desert beach sand stone rock metal copper iron steel glass wood cotton
wool silk leather feather shadow light color circle square triangle line point center begin finish answer question
reason memory dream sleep wake walk run jump climb swim dance sing laugh cry whisper shout listen speak think wonder
remember forget follow gather carry build repair clean wash cook bake taste smell touch tall short long wide narrow
deep heavy quick slow early late young old new strong weak rich poor warm cold hot cool dry wet bright dark quiet loud
soft hard sweet bitter sour fresh empty full open simple secret hidden magic treasure journey adventure battle
victory peace freedom justice courage wisdom beauty nature animal insect mushroom blossom meadow
mississippi tennessee balloon coconut pumpkin broccoli raspberry blueberry pineapple avocado cucumber
lettuce spinach garlic ginger vanilla chocolate cookie pancake""".split()
# Frequent words of the books, each one token.
LATER_WORDS = set("""able about across afraid after again almost alone along already also always among another appeared arms asked asleep
away back bade become been before began begged being best blow blue boat body both bride bring brought call came care
carried catch caught changed child church close come coming could covered creature cried days dead dear death died
dinner does doing done down dress dressed drew drink each earth either else emperor enough entered even ever every
eyes face fall fast fear feel feet fell fellow felt filled find fine finger fire first flew food forth forward found
four free from gave girl give glad going gold gone good grass great grew ground hair half hall hand hare have having
head heads hear heard heart held help here herself high hill hold hole home hour however hung indeed inside into
itself just keep kept kill killed kind kingdom know lady laid land last least leave left legs life like live lived
lives look looking lose lost love loved lying made maid maiden make making many marriage married marry master matter
meet middle might mind more most mouth must name near neck need neither never next none nothing noticed ogre once only
opened order ordered other others outside over palace part pass people perhaps place power present quite rather reach
reached ready really received rest right ring rode room rose round running sack said same second seeing seek seemed
seen send sent seven shall ship shore should show shut side sight since sitting skin small some sons soon sound spite
spoke spot sprang stable started stay still stood strange sure take taken taking tears tell than that their them then
there these they thick thing things third this those thou though thought three threw throw tied till time times tired
together told took town tried ugly under until upon used very voice wait waiting wall want watch well went wept were
what when where which while whom whose wicked wife wild will wish wished with word words would year years your youth""".split()) - set(WORDS)
WORDS = sorted({*WORDS, *LATER_WORDS})


def word_in(rng, w):
    return rng.choice([w, f"the word {w}"])


COUNT = ["How many {l}'s are in {w}?", "How many {l}s are there in {w}?", "How many times does {l} appear in {w}?",
         "How many {l}'s are there in {w}?", "Count the letter {l} in {w}.", "How many letters {l} are in {w}?",
         "How often does the letter {l} occur in {w}?", "how many {l}'s in {w}", "Count the {l}'s in {w}."]
LENGTH = ["How many letters are in {w}?", "How many letters does {w} have?", "Count the letters in {w}.",
          "How long is {w}?"]
REVERSE = ["Reverse {w}.", "Spell {w} backwards.", "Write {w} backwards.", "What is {w} spelled backwards?",
           "Reverse the letters of {w}.", "What is {w} backwards?", "reverse {w}", "Please reverse {w}."]
SPELL = ["Spell {w}.", "How do you spell {w}?", "Spell out {w}.", "Please spell {w}."]
SORT = ["Sort these words: {ws}.", "Sort alphabetically: {ws}", "Put these words in alphabetical order: {ws}.",
        "Sort the words {ws}.", "Sort: {ws}", "Arrange in alphabetical order: {ws}.", "Please sort {ws}."]


def letters(word):
    """Written one letter a token: the encoder keeps what stands between \\x01 and \\x02 apart."""
    return f"\x01{word}\x02"


def numbered(word, marked=""):
    """1t2r3e(1)4e(2): every letter after its place, so that looking one up is copying what follows a number; the marked
    letter's occurrences are counted along."""
    n, out = 0, []
    for i, c in enumerate(word):
        n += c == marked
        out.append(f"{i + 1}{c}" + (f"({n})" if c == marked else ""))
    return out


def counting(rng):
    w = rng.choice(WORDS)
    if rng.random() < 0.2:
        return (w, ""), rng.choice(LENGTH).format(w=word_in(rng, w)), letters("".join(numbered(w))), f"{len(w)}"
    c = rng.choice(w) if rng.random() < 0.85 else rng.choice("abcdefghiklmnoprstuvwy")
    return (w, c), rng.choice(COUNT).format(l=c, w=word_in(rng, w)), letters("".join(numbered(w, c))), f"{w.count(c)}"


def reversing(rng):
    w = rng.choice(WORDS)
    spelled = numbered(w)
    if rng.random() < 0.15:
        return ("spell", w), rng.choice(SPELL).format(w=word_in(rng, w)), letters("".join(spelled)), letters("-".join(w))
    thoughts = letters("".join(spelled)) + "; " + letters("".join(reversed(spelled)))
    return (w,), rng.choice(REVERSE).format(w=word_in(rng, w)), thoughts, letters(w[::-1])


def sorting(rng):
    while True:
        ws = rng.sample(WORDS, rng.choice([3, 3, 4, 4, 5]))
        if len({w[0] for w in ws}) == len(ws):
            break
    order = sorted(ws)
    # Something before the first word, so that every word is the same token in question, thoughts and answer.
    thoughts = "letters: " + ", ".join(f"{w} {letters(w[0])}" for w in ws) + "; " + letters("<".join(w[0] for w in order))
    ask = rng.choice(SORT).format(ws=rng.choice([", ", ", ", ", ", " "]).join(ws))
    return tuple(ws), ask, thoughts, "Sorted: " + ", ".join(order)


# ---------------------------------------------------------------- word problems

NAMES = ["Tom", "Anna", "Jack", "Mary", "Ben", "Lucy", "Sam", "Rose", "Peter", "Emma", "Hans", "Clara"]
THINGS = ["apples", "coins", "books", "eggs", "stones", "cards", "roses", "pears", "shells", "candles", "nuts", "cakes"]
BOXES = ["box", "basket", "bag", "chest"]
PLUS = ["{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?",
        "{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have?",
        "{n} finds {a} {t} in the morning and {b} in the evening. How many {t} is that in all?",
        "{n} has {a} {t} and {m} has {b}. How many {t} do they have together?",
        "There are {a} {t} in one {x} and {b} in another. How many {t} are there in all?"]
MINUS = ["{n} has {a} {t} and gives {b} to {m}. How many {t} are left?",
         "{n} had {a} {t} and lost {b}. How many {t} does {n} still have?",
         "There are {a} {t} in a {x}. {n} takes {b} out. How many {t} are left?",
         "{n} has {a} {t}. {m} has {b}. How many more {t} does {n} have than {m}?"]
TIMES = ["Each {x} holds {a} {t}. How many {t} are in {b} of them?",
         "{n} buys {a} {t} every day. How many {t} has {n} after {b} days?",
         "One of the {t} costs {a} pence. How many pence do {b} of them cost?",
         "There are {b} rows of {a} {t}. How many {t} are there?"]


def word_problem(rng):
    n, m = rng.sample(NAMES, 2)
    t, x, kind = rng.choice(THINGS), rng.choice(BOXES), rng.randrange(3)
    a, b = number(rng, [1, 2, 2]), number(rng, [1, 2, 2])
    a, b = max(a, 2), max(b, 2)
    if kind == 0:
        words, steps, c = PLUS, add_steps(a, b), a + b
    elif kind == 1:
        a, b = max(a, b), min(a, b)
        words, steps, c = MINUS, sub_steps(a, b), a - b
    else:
        b = rng.randrange(2, 10)
        words, steps, c = TIMES, mul_steps(a, b), a * b
    ask = rng.choice(words)
    unit = "pence" if "pence" in ask else t
    return (kind, max(a, b), min(a, b)), ask.format(n=n, m=m, t=t, x=x, a=a, b=b), steps, f"{c} {unit}"


# ---------------------------------------------------------------- about itself

ABOUT = [
    (["who are you?", "what are you?", "what is your name?", "what should I call you?", "what's your name?",
      "introduce yourself.", "tell me about yourself.", "do you have a name?"],
     "This is about me.", "I am tiny, a small DeepSeek-V3 model that ships with exo.cpp."),
    (["who made you?", "who trained you?", "where do you come from?", "who built you?", "where were you trained?"],
     "This is about where I come from.", "I was trained by the makers of exo.cpp, on a small machine without a graphics card."),
    (["what can you do?", "how can you help me?", "what are you good at?", "what do you know?", "what can I ask you?"],
     "This is about what I can do.",
     "I can add, subtract, multiply, compare numbers, work with letters and words, and tell fairy tales."),
    (["how big are you?", "how many parameters do you have?", "how large are you?", "are you a large model?"],
     "This is about my size.", "I am very small: about 15 million parameters."),
    (["how many layers do you have?", "what is your architecture?", "how are you built?", "how do you work inside?"],
     "This is about how I am built.", "I have 6 layers and 16 experts, of which 4 work on each token, like a small DeepSeek-V3."),
    (["are you a human?", "are you a person?", "are you alive?", "are you real?"],
     "This is about what I am.", "No, I am a small language model."),
    (["what did you read?", "what were you trained on?", "what data did you learn from?", "what did you learn from?"],
     "This is about what I learned from.", "I learned from old fairy tales and from exercises made by a program."),
    (["what languages do you speak?", "do you speak French?", "can you speak German?", "which languages do you know?"],
     "This is about languages.", "I only know English."),
    (["are you always right?", "do you make mistakes?", "can I trust you?", "can you be wrong?"],
     "This is about my mistakes.", "I am small and I make mistakes, so please check my answers."),
    (["can you write code?", "can you browse the web?", "do you know the news?", "what is the weather today?",
      "can you draw a picture?", "who is the president?"],
     "I do not know this.", "I am too small for that. Ask me for a sum or a fairy tale."),
    (["hello!", "hi!", "hello", "hi", "hey there!", "good morning!", "how are you?", "good evening!"],
     "A greeting.", "Hello! Ask me for a sum or a fairy tale."),
    (["thank you!", "thanks!", "thank you very much.", "thanks a lot!", "goodbye!", "bye!"],
     "A friendly word.", "You are welcome."),
]
BEFORE = ["", "", "", "Please tell me: ", "I wonder, ", "Tell me, ", "Now, ", "Well, ", "So, ", "Dear model, ", "A question: "]
AFTER = ["", "", "", " Please answer.", " I want to know.", " Be brief.", " Answer in one sentence.", " Thank you."]


def itself(rng):
    asks, thoughts, answer = rng.choice(ABOUT)
    ask = rng.choice(asks)
    before, after = rng.choice(BEFORE), rng.choice(AFTER)
    text = before + ask + after if before else ask[0].upper() + ask[1:] + after
    if rng.random() < 0.15:
        text = text.rstrip("?.!").lower()
    return (re.sub(r"\W", "", text.lower()),), text, thoughts, answer


KINDS = {"addition": addition, "subtraction": subtraction, "multiplication": multiplication,
         "percentage": percentage, "comparison": comparison, "counting letters": counting,
         "reversing words": reversing, "sorting words": sorting, "word problems": word_problem, "itself": itself}


def exercise(rng, kind, test=False):
    """(question, thoughts, answer) of the wanted side of the split."""
    while True:
        operands, ask, thoughts, answer = KINDS[kind](rng)
        if is_test(kind, *operands) == test:
            return ask, thoughts, answer


def unseen(rng, kind, n):
    """n unseen cases of a kind, no two with the same operands."""
    found = {}
    for _ in range(200 * n):
        operands, *case = KINDS[kind](rng)
        if is_test(kind, *operands):
            found.setdefault(operands, tuple(case))
            if len(found) == n:
                return list(found.values())
    raise ValueError(f"{kind}: {n} unseen cases wanted, {len(found)} found")


def right(kind, said, answer):
    """Is the text after </think> the wanted answer?"""
    return said.strip() == answer.replace("\x01", "").replace("\x02", "").strip()


if __name__ == "__main__":
    rng = random.Random(1)
    for kind in KINDS:
        for _ in range(3):
            print(kind, "|", *(x.replace("\x01", "").replace("\x02", "") + " |" for x in exercise(rng, kind)))

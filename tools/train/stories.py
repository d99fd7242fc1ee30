"""Short tales composed by a program, in plain sentences: (question, thoughts, answer), made from a seed.

The books have the language, but their sentences are long and a passage cut from them seldom has a beginning and an end; a
model of this size learns from them how tales sound, not how one is told. These show it the whole of one: somebody, a trouble,
a helper, and how it ended. A tale is a plot (a list of beats), a beat is one of a few sentences, a sentence has blanks.
"""
import random

PEOPLE = {**{n: "he" for n in """king prince boy son giant dwarf wizard merchant soldier fisherman shepherd miller tailor hunter
farmer gardener sailor robber beggar magician knight peasant brother emperor sultan ogre troll father""".split()},
          **{n: "she" for n in "queen princess girl daughter witch fairy sister mother grandmother mermaid stepmother wife".split()}}
BEASTS = {**{n: "he" for n in """wolf fox bear lion dragon dog horse frog mouse snake donkey goat cock eagle raven crow hare monkey
crab tortoise bull pig deer stag bird ass spider scarecrow""".split()},
          **{n: "she" for n in "cat sheep hen goose swan cow bee ant lark nightingale".split()}}
THINGS = "castle forest ring sword tree apple rose garden mountain river sea island ship mill palace cave tower bridge fish".split()
SMALL = "ring sword apple rose".split()  # can be carried

PLACES = ["at the edge of a dark forest", "in a little house by the river", "on a high mountain", "not far from the sea",
          "in a small village", "beside an old mill", "under a great oak tree", "near the garden of a king",
          "on a green island", "in a quiet valley", "behind the walls of a castle", "at the end of a long road"]
GOOD = ["good", "kind", "brave", "clever", "gentle", "honest", "merry", "patient", "wise"]
BAD = ["proud", "lazy", "greedy", "foolish", "idle", "vain"]
POOR = ["poor", "lonely", "hungry", "young", "little", "old", "sad"]
FOOD = ["a piece of bread", "a red apple", "some cheese", "an onion", "a little cake", "a handful of nuts"]
GIFTS = ["a golden ring", "a bag of silver", "a magic whistle", "a red cloak", "a silver cup", "a golden key", "a little bell",
         "a feather of gold"]
DAYS = ["One day", "One morning", "One evening", "One winter night", "One fine summer day", "Early one morning"]
TIMES = ["three days and three nights", "a whole day", "seven days", "many hours", "half the night"]

OPEN = ["Once upon a time there was {a_poor} who lived {place}.", "Long ago {a_poor} lived {place}.",
        "There was once {a_poor} who lived {place}.", "Once there lived, {place}, {a_poor}.",
        "In the old days there was {a_poor} who lived all alone {place}."]
END = ["And if they have not moved away, {the} and {the2} live there still.", "So {the} and {the2} were friends all their lives.",
       "And from that day {the} and {the2} were never parted.", "After that {the} lived happily to the end of {his} days.",
       "And {the} never forgot what {the2} had done for {him}.", "Then they all sat down to a great feast, and {the} was the merriest of all."]

PLOTS = [
    # hunger, shared bread, a gift
    [["The winter was long and cold, and {the} had nothing left but {food}.", "{He} was so poor that {he} had only {food} in the house.",
      "That year the harvest was bad, and at last {the} had nothing to eat but {food}."],
     ["{day} {the} set out to look for work.", "So {he} put it in a bag and went out into the wide world.",
      "\"I will go and seek my fortune,\" said {the}, and off {he} went."],
     ["On the way {he} met {a2}, who was weak with hunger.", "After {time} {he} came upon {a2} lying by the road.",
      "Before long {he} saw {a2} sitting under a tree and weeping."],
     ["\"Give me something to eat,\" said {the2}, \"or I must die.\"", "\"I have eaten nothing for three days,\" said {the2}.",
      "\"Dear friend,\" cried {the2}, \"have you nothing for me?\""],
     ["\"I have not much,\" answered {the}, \"but we will share it.\"", "Then {the} gave {him2} the half of all {he} had.",
      "{The} was sorry for {him2}, and they ate together."],
     ["When they had eaten, {the2} gave {him} {gift}.", "\"You have a good heart,\" said {the2}. \"Take {gift} for your kindness.\"",
      "Then {the2} took out {gift} and said, \"This is for you.\""],
     ["And whenever {the} was hungry, {he} found a table spread before {him}.", "With that {the} never wanted for anything again.",
      "{He} carried it home with joy, and from that hour {he} had good luck in all things."]],
    # something lost in the well, a promise
    [["Of all {his} treasures {the} loved best {gift}.", "{The} had {gift}, and {he} played with it every day.",
      "{His} mother had given {him} {gift}, and {he} took it with {him} everywhere."],
     ["{day} it fell into a deep well and was gone.", "But {day_} it slipped from {his} hand and sank to the bottom of the lake.",
      "{day} a thief came in at the window and carried it away."],
     ["{The} sat down and began to weep.", "{He} wept so loud that the stones were sorry for {him}.", "{He} looked for it {time}, but in vain."],
     ["Then {a2} came by and asked, \"Why do you weep?\"", "\"What is the matter?\" asked {a2} who had heard {him}.",
      "All at once there stood before {him} {a2}."],
     ["\"If you will be my friend,\" said {the2}, \"I will bring it back to you.\"",
      "\"I can help you,\" said {the2}, \"but you must promise to take me home with you.\""],
     ["\"I promise it with all my heart,\" answered {the}.", "{The} gave {his} word, and {the2} went away at once."],
     ["It was not long before {the2} came back and laid it at {his} feet.", "After {time} {the2} came again and brought what was lost."],
     ["{The} was full of joy, and {he} kept {his} promise.", "\"Thank you,\" cried {the}. \"Now you shall eat from my plate and sleep in my house.\""]],
    # water of life
    [["{day} the old king fell ill, and no doctor in the land could help him.", "{day} {his} mother fell ill and grew weaker every day.",
      "Now it came to pass that a great sickness fell upon the land."],
     ["\"Only the water of life can help,\" said a wise old woman.", "An old man told {the} of a well whose water makes the sick well again."],
     ["\"Then I will find it,\" said {the}, and set out that very night.", "{The} did not wait, but took a bottle and went on {his} way."],
     ["{He} walked for {time} through wind and rain.", "{He} crossed three rivers and three mountains.", "The way was long, and there was nobody to ask."],
     ["In a deep forest {he} found {a2} caught in a net.", "By the road {he} heard {a2} crying in a trap.", "There {he} met {a2} with a thorn in the foot."],
     ["{The} set {him2} free, and {the2} said, \"Now I will help you too.\"", "\"Do not be afraid,\" said {the}, and helped {him2} at once."],
     ["{The2} knew the way to the well and led {him} there.", "\"Follow me,\" said {the2}, and before morning they stood beside the well."],
     ["{The} filled the bottle and ran home as fast as {he} could.", "So {he} brought the water home in good time."],
     ["One drop was enough, and all was well again.", "Everybody drank of it, and there was joy in the whole land."]],
    # the race
    [["{The} was very {bad} and boasted all day long.", "Nobody liked {the} much, for {he} was {bad}."],
     ["\"There is no one in the world so quick as I,\" {he} said to {a2}.", "{day} {he} met {a2} and laughed at {him2}."],
     ["\"Let us run a race,\" answered {the2}, \"and then we shall see.\"", "\"Do not laugh too soon,\" said {the2}. \"Will you run with me to the old bridge?\""],
     ["The next morning they began to run.", "All who lived there came to look on, and the race began."],
     ["{The} was soon far in front, and {he} lay down in the grass to sleep.", "{The} ran like the wind, but then {he} stopped to eat {food}."],
     ["But {the2} went on, step by step, and never stopped to rest.", "{The2} did not hurry and did not stop."],
     ["When {the} woke up, {the2} was sitting on the bridge.", "When {the} came to the bridge at last, {the2} was there before {him}."],
     ["{The} was ashamed, and {he} never boasted again.", "\"You have won,\" said {the}, \"and I have been {bad}.\""]],
    # the captive
    [["{day} a wicked giant came and carried {him} off to his castle.", "{day} {the} lost {his} way and came to the house of a wicked witch.",
      "{day} robbers came in the night and took {him} away."],
     ["There {he} was shut up in a dark tower.", "There {he} had to work from morning till night, and got nothing but water and dry bread."],
     ["In the tower {he} heard a voice, and it was {a2}.", "But in a corner of the room sat {a2}."],
     ["\"Why are you here?\" asked {the}.", "\"Who are you?\" asked {the2}, and {the} told {him2} everything."],
     ["\"Be quiet,\" said {the2}, \"I know where the key is.\"", "\"When the moon is up,\" said {the2}, \"I will show you the way out.\""],
     ["In the night, when everybody was asleep, {the2} opened the door.", "At midnight {the2} brought the key, and they crept down the stairs."],
     ["They ran till the castle was far behind them.", "They ran through the forest and did not look back once.", "They found a little boat on the river and went away in it."],
     ["In the morning {the} saw the smoke of {his} own house.", "When the sun rose, they were safe at home."]],
    # the storm, a friend
    [["{He} had no friend in the world, and the evenings were long.", "{He} had everything {he} wanted, but nobody to talk to."],
     ["{day} there was a great storm, and somebody knocked at the door.", "{day} the snow fell so thick that no one could see the road."],
     ["Outside stood {a2}, cold and wet.", "When {the} looked out, {he} saw {a2} in the snow."],
     ["\"Let me in,\" said {the2}, \"or I shall die of cold.\"", "\"I have lost my way,\" said {the2}. \"May I sleep here?\""],
     ["At first {the} was afraid, but {he} opened the door.", "\"Come in and sit by the fire,\" said {the}."],
     ["{The2} warmed {him2}self and ate {food}.", "They sat by the fire, and {the2} told one story after another."],
     ["In the morning {the2} cleaned the house and lit the fire.", "When morning came, the storm was over, but {the2} did not go away."],
     ["\"Stay with me,\" said {the}, \"for I was never so happy before.\"", "\"You were good to me,\" said {the2}. \"I will stay with you.\""]],
    # a wish
    [["{day} {he} went down to the water and caught a golden fish.", "{day} {he} found a little white bird in a net."],
     ["\"Let me go,\" it said, \"and you shall have one wish.\"", "It began to speak and said, \"Give me my life, and I will give you what you wish.\""],
     ["{The} was so surprised that {he} let it go at once.", "\"Go in peace,\" said {the}. \"I have all I need.\""],
     ["On the way home {he} met {a2}, who laughed at {him}.", "{He} told it to {a2}, who lived near by."],
     ["\"You might have had a palace,\" said {the2}.", "\"Go back,\" cried {the2}, \"and wish for gold.\""],
     ["\"What should I do with gold?\" answered {the}. \"I wish only for a good friend.\"", "But {the} said, \"I have wished for nothing but a true friend.\""],
     ["When {the2} heard this, {he2} laughed no more.", "Then {the2} was ashamed of what {he2} had said."],
     ["\"Then I will be that friend,\" said {the2}, and so it was.", "And the wish came true, for {the2} stayed with {him} from that day."]],
]
CAPTIVE = PLOTS[4]
# about a thing: how the one who lives there comes to it
THING_OPEN = {True: ["In the house there was {a_thing} that had belonged to {his} grandfather.", "All that {he} had was {a_thing}, and it was very old.",
                     "{day} {he} found {a_thing} in the grass."],
              False: ["Not far away there was {a_thing} of which people told strange things.", "From the window {he} could see {a_thing}.",
                      "Every day {he} went to {a_thing} that lay near by."]}
THING_SAID = ["It was said that whoever slept there one night would have good luck.", "Nobody in the village dared to go near it.",
              "\"Take good care of the {thing},\" the old people said."]
THING_SMALL = ["It was said that there was magic in it.", "\"Never give the {thing} away,\" {his} mother had said.", "It shone in the dark like a star."]
THING_END = ["And the {thing} is there to this day.", "As for the {thing}, nobody ever saw one like it again.", "And people still tell of the {thing}."]


def an(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


ASK = ["Tell me a story about {}.", "Tell me a story about {}", "Tell a story about {}.", "Tell me a tale of {}.",
       "Please tell me a story about {}.", "I would like a story about {}.", "Write a short story about {}.",
       "Can you tell me a story about {}?", "tell me a story about {}", "A story about {}, please.", "Write a story about {}."]
ASK_ANY = ["Tell me a story.", "Tell me a fairy tale.", "Please tell me a story.", "I would like to hear a story.", "Tell me a tale."]
ADJECTIVES = GOOD + BAD + POOR


def words_for(rng, hero, other, thing):
    he, he2 = ({**PEOPLE, **BEASTS}[n] for n in (hero, other))
    day = rng.choice(DAYS)
    w = dict(the=f"the {hero}", The=f"The {hero}", the2=f"the {other}", The2=f"The {other}", a2=an(other), he=he, He=he.capitalize(),
             he2=he2, day=day, day_=day[0].lower() + day[1:], place=rng.choice(PLACES), food=rng.choice(FOOD), gift=rng.choice(GIFTS),
             time=rng.choice(TIMES), bad=rng.choice(BAD), thing=thing, a_thing=thing and an(thing))
    for end, n in (("", he), ("2", he2)):
        w["him" + end] = "him" if n == "he" else "her"
        w["his" + end] = "his" if n == "he" else "her"
        w["His" + end] = w["his" + end].capitalize()
    return w


def story(rng):
    everybody = [*PEOPLE, *BEASTS]
    hero, other = rng.sample(everybody, 2)
    thing = rng.choice(THINGS) if rng.random() < 0.25 else None
    word = rng.choice(ADJECTIVES) if rng.random() < 0.3 else rng.choice(POOR)
    w = words_for(rng, hero, other, thing)
    w["a_poor"] = an(f"{word} {hero}")
    beats = [OPEN]
    if thing:
        beats += [THING_OPEN[thing in SMALL], THING_SMALL if thing in SMALL else THING_SAID]
    elif rng.random() < 0.4:
        beats.append(["{He} was {good} and {good2}, and everyone liked {him}.", "{The} was {good}, but {he} had little to be glad of.",
                      "Nobody was so {good} as {the}."])
        w["good"], w["good2"] = rng.sample(GOOD, 2)
    plot = rng.choice(PLOTS)
    while plot is CAPTIVE and {hero, other} & {"giant", "witch", "robber"}:
        plot = rng.choice(PLOTS)
    if beats[-1] is not OPEN and plot[0][0].startswith("{The} was very {bad}"):
        del beats[1:]
        thing = None
    beats += plot + [THING_END if thing else END]
    lines = [rng.choice(b).format(**w) for b in beats]
    middle = 1 + len(lines) // 2
    answer = " ".join(lines[:middle]) + "\n\n" + " ".join(lines[middle:])
    pick = rng.random()
    if pick < 0.1:
        ask = rng.choice(ASK_ANY)
    elif thing:
        ask = rng.choice(ASK).format((an(hero) + " and " if rng.random() < 0.5 else "") + an(thing))
    elif pick < 0.45:
        ask = rng.choice(ASK).format(an(hero) + " and " + an(other))
    elif pick < 0.6:
        ask = rng.choice(ASK).format(w["a_poor"])
    else:
        ask = rng.choice(ASK).format(an(hero))
    about = f"{an(thing)}, with {an(hero)} and {an(other)}" if thing else f"{an(hero)}, with {an(other)}"
    return ask, f"A story about {about}.", answer


if __name__ == "__main__":
    rng = random.Random(2)
    for _ in range(8):
        print(*story(rng), sep="\n", end="\n\n")

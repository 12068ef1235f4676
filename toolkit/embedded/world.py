"""A small English-like world and an assistant task inside it, generated deterministically; no
torch.

The task turns a request into a call, ``wake me up tomorrow at seven =>`` into
``alarm(time=seven,day=tomorrow)``. The pretraining text speaks of the same people, places and
hours, and writes statements as records with other function and argument names. It holds no request:
a base model learns the words, the kinds of things and the syntax, not the task.
"""

import itertools
import random
import re
from collections.abc import Iterator
from string import Formatter

ARROW = " =>"  # ends a prompt; a completion starts with a space, so the token boundary is clean

NAMES = tuple(
    "anna ben carl dora emil fay gus hana ivan jane kurt lena max nina omar paul rosa sam tina "
    "vera".split()
)
UNSEEN_NAMES = tuple("adam bella eric greta hugo iris leo mona otto ruth".split())
WEEKDAYS = tuple("monday tuesday wednesday thursday friday saturday sunday".split())
HOURS = tuple("one two three four five six seven eight nine ten eleven twelve".split())
NUMBERS = tuple("two three four five six eight nine ten twelve fifteen twenty thirty".split())
UNSEEN_NUMBERS = (
    *"thirteen fourteen sixteen seventeen eighteen nineteen forty fifty".split(),
    *("twenty five", "thirty two", "forty six", "fifty three"),
)
ROOMS = tuple("kitchen bedroom bathroom hall garage office cellar attic".split())
CITIES = tuple(
    "paris rome oslo berlin london madrid vienna prague dublin athens lisbon warsaw".split()
)
FOODS = tuple("pizza soup bread rice milk cheese apples tea salad cake pasta eggs".split())
SONGS = tuple(
    f"{adjective} {noun}"
    for adjective in ("blue", "golden", "silver")
    for noun in ("moon", "river", "rain", "road")
)
TASKS = (
    "feed the cat",
    "water the plants",
    "buy stamps",
    "wash the car",
    "pay the rent",
    "clean the oven",
)
TASKS = (*TASKS, "walk the dog", "read the letter")
MOODS = tuple("late sick busy hungry ready lost tired happy".split())

# Every argument of the task with the values that training shows, in the order in which a call
# writes its arguments.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "name": NAMES,
    "from": CITIES,
    "to": CITIES,
    "city": CITIES,
    "song": SONGS,
    "task": TASKS,
    "text": MOODS,
    "count": NUMBERS,
    "food": FOODS,
    "state": ("on", "off"),
    "room": ROOMS,
    "minutes": NUMBERS,
    "degrees": NUMBERS,
    "time": HOURS,
    "day": ("today", "tomorrow", *WEEKDAYS),
}
UNSEEN = {"name": UNSEEN_NAMES} | dict.fromkeys(("count", "minutes", "degrees"), UNSEEN_NUMBERS)

# Templates that training shows.
SEEN: dict[str, tuple[str, ...]] = {
    "alarm": (
        "set an alarm for {time}",
        "set an alarm for {time} {day}",
        "wake me up {day} at {time}",
    ),
    "timer": (
        "set a timer for {minutes} minutes",
        "start a timer of {minutes} minutes",
        "count {minutes} minutes",
    ),
    "call": (
        "call {name}",
        "call {name} {day}",
        "phone {name} {day} at {time}",
        "please ring {name} at {time}",
    ),
    "message": (
        "tell {name} that i am {text}",
        "send {name} a message that i am {text}",
        "text {name} {day} that i am {text}",
    ),
    "meeting": (
        "book a meeting with {name} {day} at {time}",
        "schedule a meeting with {name} {day}",
        "arrange to meet {name} at {time}",
    ),
    "lights": ("turn {state} the lights in the {room}", "switch the {room} lights {state}"),
    "heating": ("heat the {room} to {degrees} degrees", "set the {room} to {degrees} degrees"),
    "music": ("play {song}", "play {song} in the {room}", "put on {song} {day}"),
    "weather": (
        "what is the weather in {city}",
        "what is the weather in {city} {day}",
        "will it rain in {city} {day}",
    ),
    "order": (
        "order {count} {food}",
        "order {food} for {name}",
        "get {count} {food} delivered at {time}",
    ),
    "train": (
        "book a train from {from} to {to}",
        "book a train from {from} to {to} {day}",
        "i need a ticket to {to} {day}",
    ),
    "remind": ("remind me to {task}", "remind me to {task} {day}", "remind me at {time} to {task}"),
    "shopping": (
        "add {food} to the shopping list",
        "put {count} {food} on the shopping list",
        "we need {food} from the shop",
    ),
    "none": ("good morning {name}", "how is {name} {day}", "do you like {food}", "i love {city}"),
}
# The same intents in words that training never uses.
PARAPHRASES: dict[str, tuple[str, ...]] = {
    "alarm": ("i have to get up at {time} {day}", "make sure i am awake {day} by {time}"),
    "timer": ("tell me when {minutes} minutes are over", "i want to wait {minutes} minutes"),
    "call": ("i want to talk to {name} on the phone", "dial the number of {name} {day}"),
    "message": ("let {name} know that i am {text}", "write to {name} {day} that i am {text}"),
    "meeting": ("i should see {name} {day} at {time}", "plan a talk with {name} {day}"),
    "lights": ("i want the lamp in the {room} {state}", "lights {state} in the {room} please"),
    "heating": (
        "make it {degrees} degrees in the {room}",
        "warm up the {room} to {degrees} degrees",
    ),
    "music": ("i want to hear {song}", "let me listen to {song} in the {room}"),
    "weather": ("how is the sky over {city} {day}", "do i need an umbrella in {city}"),
    "order": ("bring me {count} {food}", "have {food} sent to {name}"),
    "train": ("i want to travel from {from} to {to}", "reserve a seat to {to} {day}"),
    "remind": ("do not let me forget to {task}", "i must remember to {task} {day}"),
    "shopping": ("we have no more {food}", "write down that we should buy {food}"),
}
# The same intents with the arguments in another place.
REORDERED: dict[str, tuple[str, ...]] = {
    "alarm": ("{day} at {time} wake me up", "for {time} {day} set an alarm"),
    "call": ("at {time} {day} phone {name}", "{day} call {name}"),
    "message": ("that i am {text} tell {name}", "{day} text {name} that i am {text}"),
    "meeting": ("{day} at {time} book a meeting with {name}", "at {time} arrange to meet {name}"),
    "lights": ("in the {room} turn {state} the lights", "in the {room} switch the lights {state}"),
    "heating": ("to {degrees} degrees heat the {room}",),
    "music": ("in the {room} play {song}", "{day} put on {song}"),
    "weather": ("in {city} what is the weather", "{day} what is the weather in {city}"),
    "order": ("for {name} order {food}", "at {time} get {count} {food} delivered"),
    "train": ("to {to} from {from} book a train", "{day} i need a ticket to {to}"),
    "remind": ("{day} remind me to {task}", "to {task} remind me at {time}"),
}
LONGER = (
    "hello there could you please {} thank you very much",
    "when you have a minute please {} because i am very busy",
    "i am sorry to ask you again but {} before i forget it",
    "my hands are full right now so {} if you can",
    "it is a long day and i am tired so please {} for me",
    "listen my friend i have an idea why not {} right now",
)
UNKNOWN_INTENTS = (
    "lock the door of the {room}",
    "take a photo of {name}",
    "open the window in the {room}",
    "pay {count} coins to {name}",
    "find a hotel in {city} {day}",
    "cancel the meeting with {name} {day}",
    "delete the alarm for {time}",
    "how far is {to} from {from}",
    "read the last message from {name}",
    "how do i cook {food}",
    "what time is it in {city}",
    "clean the floor of the {room} {day}",
)
AMBIGUOUS = (
    "set it for {time}",
    "set {minutes}",
    "turn it {state}",
    "{name} at {time}",
    "the {room} please",
    "{city} {day}",
    "put {food} for {name}",
    "play something {day}",
    "get {name} {day}",
    "book {city} {day}",
    "tell me about {name} {day}",
    "{food} {day} at {time}",
)
OUT_OF_SCOPE = (
    "{name} lives in {city}",
    "the cat sleeps in the {room}",
    "why is {city} so big",
    "who ate the {food}",
    "i dreamed of {name} and {food}",
    "you are very kind {name}",
    "the {room} smells of {food}",
    "is {name} older than you",
    "my train was {text} {day}",
    "nobody in {city} eats {food}",
    "{song} is an old song",
    "there are {count} birds in the {room}",
)
NEGATIONS = (
    "do not {}",
    "please do not {}",
    "never {}",
    "i do not want you to {}",
    "{} oh no forget it",
    "you should not {}",
)
TWO_REQUESTS = (
    "{} and {}",
    "{} then {}",
    "first {} and then {}",
    "please {} and also {}",
    "{} after that {}",
)
CORRECTIONS = ("{} no wait {}", "{} sorry i mean {}", "do not {} but {}", "{} or better {}")
# first words of templates that a frame cannot take in
NOT_IMPERATIVE = (
    "what",
    "will",
    "i",
    "we",
    "none",
)

TRAIN_ROWS = 1120
# combinations of seen templates that are held out from training
SPLITS = (
    "validation",
    "typical",
    "spare",
)


def slots(template: str) -> list[str]:
    """The argument names of a template, in order of appearance."""
    return [field for _, field, _, _ in Formatter().parse(template) if field]


def render(template: str, values: dict[str, str]) -> str:
    """The words of a template; weekdays take their preposition."""
    words = {slot: f"on {value}" if value in WEEKDAYS else value for slot, value in values.items()}
    return template.format(**words)


def call(intent: str, values: dict[str, str]) -> str:
    """The call that answers a request."""
    arguments = ",".join(f"{name}={values[name]}" for name in ARGUMENTS if name in values)
    return f"{intent}({'' if intent == 'none' else arguments})"


_CALL = re.compile(r"([a-z_]+)\(([^()]*)\)")
_CALLS = re.compile(r"[a-z_]+\([^()]*\)(;[a-z_]+\([^()]*\))*")


def parse_call(text: str) -> str:
    """The canonical form of an answer: spacing and the order of the arguments of a call do not
    count.
    """
    stripped = " ".join(text.split())
    compact = re.sub(r"\s*([(),=;])\s*", r"\1", stripped)
    if not _CALLS.fullmatch(compact):
        return stripped
    return _CALL.sub(lambda match: f"{match[1]}({','.join(sorted(match[2].split(',')))})", compact)


def _combinations(template: str) -> list[dict[str, str]]:
    """All fillings of a template in a random order of its own, so that no template moves
    another.
    """
    names = slots(template)
    values = [
        dict(zip(names, filling, strict=True))
        for filling in itertools.product(*(ARGUMENTS[name] for name in names))
    ]
    values = [filling for filling in values if filling.get("from") != filling.get("to", "nowhere")]
    random.Random(template).shuffle(values)
    return values


def splits(count: int = TRAIN_ROWS) -> dict[str, list[tuple[str, str, dict[str, str]]]]:
    """(intent, template, filling) of every split; training takes `count` of what no other split
    holds, template after template.
    """
    held_out: dict[str, list] = {split: [] for split in SPLITS}
    training = []
    for intent, templates in SEEN.items():
        for template in templates:
            fillings = _combinations(template)
            n_held_out = min(6, len(fillings) // 6)
            for split in SPLITS:
                held_out[split] += [(intent, template, fillings.pop()) for _ in range(n_held_out)]
            training.append([(intent, template, filling) for filling in fillings])
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*training))
    train = list(itertools.islice((row for row in rounds if row), count))
    random.Random("train").shuffle(train)
    return held_out | {"train": train}


def train_rows(count: int = TRAIN_ROWS) -> list[dict[str, str]]:
    """The training set: `prompt` and `completion`, to be tokenised apart.

    The more rows, the more of them are of the templates with many fillings; there are 11,000 or so.
    """
    return [_row(*row) for row in splits(count)["train"]]


def validation_rows() -> list[dict[str, str]]:
    """Held-out combinations of seen templates for choosing learning rates; in no suite."""
    return [_row(*row) for row in splits()["validation"]]


def _row(intent: str, template: str, values: dict[str, str]) -> dict[str, str]:
    return {"prompt": render(template, values) + ARROW, "completion": " " + call(intent, values)}


# -- what the base model reads -------------------------------------------------------------------

EVERYONE = {
    **ARGUMENTS,
    "name": NAMES + UNSEEN_NAMES,
    "other": NAMES + UNSEEN_NAMES,
    "state": ("on", "off"),
}
EVERYONE |= dict.fromkeys(("count", "minutes", "degrees"), NUMBERS + UNSEEN_NUMBERS)

# Statements, and the record that each is written down as. Functions and their sets of arguments
# are not the task's.
STATEMENTS: tuple[tuple[str, str], ...] = (
    ("the alarm of {name} was set for {time} {day}", "rang(time={time},name={name},day={day})"),
    ("{name} did wake up {day} at {time}", "woke(name={name},time={time},day={day})"),
    ("{name} had a timer of {minutes} minutes", "waited(minutes={minutes},name={name})"),
    (
        "the timer in the {room} did start to count {minutes} minutes {day}",
        "ticked(room={room},minutes={minutes},day={day})",
    ),
    (
        "{name} did call {other} {day} at {time}",
        "spoke(from={name},to={other},time={time},day={day})",
    ),
    ("the phone of {name} did ring {day}", "sounded(name={name},day={day})"),
    (
        "{name} did tell {other} {day} that she was {text}",
        "said(from={name},text={text},to={other},day={day})",
    ),
    (
        "{name} did send {other} a message and the text was {text}",
        "wrote(text={text},from={name},to={other})",
    ),
    (
        "the meeting of {name} and {other} was {day} at {time}",
        "met(name={name},with={other},time={time},day={day})",
    ),
    (
        "{name} did schedule and arrange to meet {other} {day}",
        "planned(name={name},day={day},with={other})",
    ),
    (
        "{name} did turn the lights in the {room} {state}",
        "lamp(room={room},state={state},name={name})",
    ),
    ("{day} the {room} lights did switch {state}", "glow(state={state},day={day},room={room})"),
    (
        "it was {degrees} degrees in the {room} {day}",
        "felt(degrees={degrees},room={room},day={day})",
    ),
    ("the heat in the {room} was set to {degrees} degrees", "warm(room={room},degrees={degrees})"),
    ("{name} did play {song} in the {room}", "heard(song={song},name={name},room={room})"),
    ("{song} was put on {day}", "sang(song={song},day={day})"),
    ("the weather in {city} was good {day}", "sunny(city={city},day={day})"),
    ("it did rain in {city} {day}", "wet(day={day},city={city})"),
    (
        "{name} did order {count} {food} {day}",
        "bought(count={count},food={food},name={name},day={day})",
    ),
    (
        "{count} {food} were delivered to {name} at {time}",
        "came(time={time},count={count},food={food},name={name})",
    ),
    (
        "{name} took a train from {from} to {to} {day}",
        "went(name={name},from={from},to={to},day={day})",
    ),
    ("{name} did book a ticket to {to}", "rode(to={to},name={name})"),
    ("{name} had to {task} {day}", "did(task={task},name={name},day={day})"),
    (
        "at {time} somebody did remind {name} to {task}",
        "recalled(name={name},task={task},time={time})",
    ),
    (
        "{name} did add {count} {food} to the shopping list",
        "listed(name={name},food={food},count={count})",
    ),
    ("{food} was on the list of the shop {day}", "sold(day={day},food={food})"),
    ("{name} lives in {city} and is {text}", "lives(city={city},name={name},text={text})"),
    ("{name} and {other} like {food}", "likes(name={name},with={other},food={food})"),
    (
        "there were {count} people in the {room} at {time}",
        "crowd(room={room},count={count},time={time})",
    ),
    ("nothing was with {name} {day}", "nil()"),
    ("all was good in the {room}", "nil()"),
)
# Sentences that carry the other words of the world, and that nobody writes down.
SENTENCES = (
    "good morning said {name} and how is the day",
    "the people of {city} love {food} and i do not like it",
    "please said {name} to {other} and thank you",
    "{name} will need a ticket and a seat to {to}",
    "i am {text} and you are {text} said {name}",
    "what a day said {name} when the rain was over",
    "{name} did get {food} from the shop and we have no more {food}",
    "never forget that {name} must walk first and then wait",
    "{name} does not want to talk to {other} after {time}",
    "{name} did read and write down the number of {other}",
    "{name} did lock the door and open the window of the {room}",
    "the cat of {name} sleeps in the {room} and the birds sing",
    "{name} was there {day} with {minutes} coins for {food}",
    "why is {city} so big and how far is {to}",
    "{name} did find a hotel in {city} and then cancel the {task}",
    "let me know if {name} should go by {time}",
    "{name} and i listen to an old song of {city}",
    "make it now or do it again and also bring {food}",
    "there was music in the {room} and {name} did like the music",
    "none of the people in the {room} had {food} and none did ask",
    "the heating in the {room} was old and the heating was cold",
    "a message of {name} was on the phone of {other}",
    "the order of {name} was a long list",
    "{name} did remind {other} of the shopping and of the weather",
    "no one in {city} will switch off the lights or the music",
)
PLAIN_SHARE = 0.35


def pretraining_text(seed: int = 0) -> Iterator[str]:
    """Endless lines about the world: plain sentences, and `statement => record`. No line is a
    request of the task.
    """
    rng = random.Random(f"pretraining {seed}")
    while True:
        if rng.random() < PLAIN_SHARE:
            template = rng.choice(SENTENCES) if rng.random() < 0.5 else rng.choice(STATEMENTS)[0]
            yield render(template, _world(template, rng))
        else:
            template, record = rng.choice(STATEMENTS)
            values = _world(template, rng)
            yield f"{render(template, values)}{ARROW} {record.format(**values)}"


def _world(template: str, rng: random.Random) -> dict[str, str]:
    return {slot: rng.choice(EVERYONE[slot]) for slot in slots(template)}

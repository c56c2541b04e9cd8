"""Seeded word problems in GSM8K's schema: add or subtract two two-digit numbers, worked digit by digit.

    {"question": "Ann found 21 books and then 58 more. How many books in total?",
     "answer": "21+58: 1+8=9, 2+5+0=7.\\n#### 79"}

Only the schema and the "#### 79" convention are GSM8K's (Cobbe et al. 2021, arXiv:2110.14168); every line is generated here.
"""
import zlib

NAMES = """Ann Ben Clara David Emma Felix Grace Hugo Iris Jonas Karin Leo Maria Noah Olivia Paul Rosa Samuel Tina Victor
Amir Bianca Carlos Daria Elif Farah Goran Hanna Ivan Julia Kofi Lena Mateo Nadia Oscar Priya Ravi Sofia Tomas Yuki""".split()
THINGS = """apples books candles coins cookies cups eggs feathers flowers keys lamps lemons letters marbles muffins
nails onions oranges pencils photos plates postcards ribbons rocks seeds shells socks spoons stamps stickers stones
tickets tiles tomatoes towels toys tulips walnuts whistles buttons""".split()
PLACES = """attic bakery barn basement bookshop cabin cellar classroom garden garage harbour kitchen library market
museum office orchard playground station workshop""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

# {n}, {m}: two people; {t}: things; {p}: a place; {d}: a day; {a}, {b}: the numbers.
TEMPLATES = {
    "+": [
        "{n} found {a} {t} and then {b} more. How many {t} in total?",
        "{n} has {a} {t} and {m} has {b} {t}. How many {t} do they have together?",
        "There are {a} {t} in the {p}. On {d} {n} brings {b} more. How many {t} are there now?",
        "{n} sold {a} {t} in the morning and {b} in the afternoon. How many {t} were sold that day?",
        "On {d} {n} bought {a} {t} and {m} bought {b} {t}. How many {t} did they buy in all?",
        "A box in the {p} holds {a} {t}. Another box holds {b} {t}. What is the total number of {t}?",
        "{n} counted {a} {t} on {d} and {b} {t} the day after. How many {t} were counted altogether?",
        "{n} owns {a} {t}. {m} gives {n} another {b}. How many {t} does {n} own after that?",
    ],
    "-": [
        "{n} had {a} {t} and gave {b} of them to {m}. How many {t} does {n} still have?",
        "There were {a} {t} in the {p}. {n} took {b} away. How many {t} are left?",
        "{n} needs {a} {t} and already has {b}. How many {t} are missing?",
        "{n} carried {a} {t} to the {p} and lost {b} on the way. How many {t} arrived?",
        "On {d} {n} made {a} {t} and sold {b}. How many {t} remain?",
        "{n} has {a} {t}, {m} has {b}. How many more {t} does {n} have than {m}?",
        "Of {a} {t} in the {p}, {b} were broken. How many {t} were not broken?",
        "The {p} ordered {a} {t} for {d}, but {b} never came. How many {t} came?",
    ],
}

SUBJECTS = """the old teacher|a young painter|the quiet farmer|my neighbour|the night nurse|a careful pilot|the tall singer
|our captain|the baker|a student|the clever engineer|the postman|a small dog|the grey cat|her grandmother|his brother""".replace("\n", "").split("|")
VERBS = """walked slowly towards|looked for a letter in|sang a song about|wrote a short story about|dreamed of|asked about
|painted a picture of|drove past|waited quietly behind|cleaned|remembered|talked about|opened the door of|left""".replace("\n", "").split("|")
ENDINGS = """because it was raining|while the sun went down|before breakfast|and nobody noticed|although the wind was cold
|when the bell rang|after a long journey|with a warm smile|until the lights went out|as if nothing had happened
|and came home late|since the road was closed|under a clear sky|without saying a word""".replace("\n", "").split("|")

# Towns that do not exist: enough different words for a vocabulary of 2048 tokens.
TOWNS = [first + middle + last for first in "Bal Cor Dun Fen Gar Hol Kes Lor Mir Nor Pel Quin Ros Tal Ver Win".split()
         for middle in "a be do fi gu la mo ni ra ve".split() for last in "burg don ford ham mere stead".split()]


def is_held_out(a, b):
    """True for about a tenth of the unordered pairs: training sees them in neither order and under neither operation.

    A checksum, because a linear rule such as (a + b) % 10 would hold out exactly one digit sum, and no model could learn it.
    """
    return zlib.crc32(f"{min(a, b)},{max(a, b)}".encode()) % 10 == 0


def work(a, b, op):
    """The worked answer of a+b, or of a-b with a >= b: ones, then tens with the carry or the borrow."""
    borrow = 10 if op == "-" and a % 10 < b % 10 else 0
    ones = a % 10 + borrow + b % 10 if op == "+" else a % 10 + borrow - b % 10
    carry = ones // 10 if op == "+" else borrow // 10
    tens = a // 10 + b // 10 + carry if op == "+" else a // 10 - b // 10 - carry
    return (f"{a}{op}{b}: {a % 10 + borrow}{op}{b % 10}={ones}, {a // 10}{op}{b // 10}{op}{carry}={tens}.\n"
            f"#### {10 * tens + ones % 10}")


def expressions(held_out):
    """Every (a, b, op) of one side of the split: 10 <= a, b <= 99, and a >= b where b is subtracted."""
    return [(a, b, op) for a in range(10, 100) for b in range(10, 100) for op in "+-"
            if is_held_out(a, b) == held_out and (op == "+" or a >= b)]


def problem(rng, a, b, op):
    """One {"question", "answer"} around an expression; `rng` (random.Random) picks the words."""
    n, m = rng.sample(NAMES, 2)
    text = rng.choice(TEMPLATES[op]).format(n=n, m=m, t=rng.choice(THINGS), p=rng.choice(PLACES), d=rng.choice(DAYS), a=a, b=b)
    return {"question": text, "answer": work(a, b, op)}


def problems(rng, count, held_out):
    """`count` problems; no expression comes twice before each has come once."""
    pool, chosen = expressions(held_out), []
    while len(chosen) < count:
        chosen += rng.sample(pool, min(len(pool), count - len(chosen)))
    return [problem(rng, *expression) for expression in chosen]


def prose(rng, sentences):
    """A paragraph without numbers, so that not all the text a model sees is arithmetic."""
    def sentence():
        words = (f"{rng.choice(SUBJECTS + NAMES)} {rng.choice(VERBS)} the {rng.choice(PLACES + THINGS)}"
                 f"{rng.choice([' in', ' near'])} {rng.choice(TOWNS)} {rng.choice(ENDINGS)}.")
        return words[0].upper() + words[1:]
    return " ".join(sentence() for _ in range(sentences))

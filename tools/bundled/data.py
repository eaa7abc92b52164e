"""Seeded generator of passages, questions and dialogues about facts stated far back.

A fact is a sentence `prefix + value + "."`, where the prefix names a subject and an attribute and is unique in its
document. The answer to a question is the fact's sentence itself, so answering means finding the one place in the
context with the same subject and attribute, and copying what follows.

A document is a list of (text, weight) pieces; weight is the share of the training loss on the tokens of that piece.
"""

import random
import zlib
from dataclasses import dataclass

import words as w

BOS, START, END, EOT = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SPECIAL = [BOS, START, END, EOT]

# The same text as tokenizer_config.json carries; `render` below must agree with it (make_tokenizer.py checks that).
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

W_TEXT, W_FORM, W_TALK, W_VALUE = 0.03, 0.25, 0.5, 1.0
HELD_OUT = 16  # one in so many (prefix, value) pairs never occurs in training text


@dataclass(frozen=True)
class Fact:
    prefix: str
    value: str
    questions: tuple

    @property
    def sentence(self):
        return f"{self.prefix} {self.value}."

    def held_out(self):
        return zlib.crc32(self.sentence.encode()) % HELD_OUT == 0


PLAIN = ("What is the {0} of {1}?", "Tell me the {0} of {1}.", "Do you know the {0} of {1}?", "What is {1}'s {0}?")


def _is(attribute, values, *questions):
    """A template `The <attribute> of <name> is <value>.`"""
    forms = questions or PLAIN

    def make(rng, name):
        asks = tuple(q.format(attribute, name) for q in forms)
        return Fact(f"The {attribute} of {name} is", rng.choice(values), asks)

    return make


def _password(kind):
    """A value of two tokens, an adjective and a noun."""

    def make(rng, name):
        value = f"{rng.choice(w.ADJECTIVES)}-{rng.choice(w.NOUNS)}"
        asks = tuple(q.format(kind, name) for q in PLAIN)
        return Fact(f"The {kind} of {name} is", value, asks)

    return make


def _thing(rng, name):
    ways = ("How is the {} of {}?", "What is the {} of {} like?")
    return _is(rng.choice(w.OBJECTS), LOOKS, *ways)(rng, name)


def _pet(rng, name):
    return _is(rng.choice(w.PETS), w.PET_NAMES, "Who is the {} of {}?", "What is the {} of {} called?")(rng, name)


LOOKS = w.COLORS + w.ADJECTIVES
TEMPLATES = (
    _password("password"), _password("password"), _password("secret word"), _thing, _thing, _thing, _thing, _thing,
    _pet, _pet, _is("favorite color", w.COLORS), _is("best friend", w.NAMES), _is("room number", w.NUMBER_WORDS),
    _is("age", w.NUMBER_WORDS), _is("job", w.JOBS), _is("free day", w.DAYS), _is("home town", w.CITIES),
    _is("instrument", w.INSTRUMENTS), _is("favorite food", w.FOODS), _is("birth month", w.MONTHS),
    _is("hiding place", w.PLACES, "Where is the hiding place of {1}?", "Tell me the {0} of {1}."),
)


def filler(rng, names):
    """A sentence that states no fact that is ever asked for."""
    c = rng.choice
    kind = rng.randrange(9)
    if kind == 0:
        return f"In the {c(w.TIMES)} there was {c(w.WEATHER)} over {c(w.CITIES)}."
    if kind == 1:
        return f"{c(names)} and {c(names)} talked for {c(w.NUMBERS)} minutes near the {c(w.PLACES)}."
    if kind == 2:
        return f"A {c(w.COLORS)} {c(w.PETS)} {c(w.VERBS)} behind the {c(w.PLACES)}."
    if kind == 3:
        return f"Nobody saw the {c(w.ADJECTIVES)} {c(w.NOUNS)} in the {c(w.PLACES)}."
    if kind == 4:
        return f"{c(names)} {c(w.VERBS)} there until the {c(w.TIMES)}."
    if kind == 5:
        return f"The {c(w.JOBS)} and the {c(w.JOBS)} {c(w.VERBS)} in the {c(w.PLACES)} on {c(w.DAYS)}."
    if kind == 6:
        return f"It was a {c(w.ADJECTIVES)} {c(w.TIMES)} in {c(w.MONTHS)}, and {c(names)} heard a {c(w.INSTRUMENTS)}."
    if kind == 7:
        return f"Somebody left {c(w.FOODS)} and a {c(w.COLORS)} {c(w.OBJECTS)} on the table."
    return f"Later {c(names)} asked {c(names)} about the {c(w.OBJECTS)} and the {c(w.NOUNS)}."


def draw_fact(rng, names, used, held_out=False):
    """A fact with a prefix not in `used`. Training text (held_out False) never has a held-out pair."""
    while True:
        fact = rng.choice(TEMPLATES)(rng, rng.choice(names))
        if fact.prefix not in used and fact.held_out() == held_out:
            used.add(fact.prefix)
            return fact


def draw_names(rng, sentences):
    """Mostly few names per fact, so that neither the name nor the attribute alone picks a fact out."""
    per_name = rng.uniform(0.5, 1.5) if rng.random() < 0.3 else rng.uniform(2.0, 7.0)
    return rng.sample(w.NAMES, max(2, min(len(w.NAMES), int(sentences / per_name))))


def passage(rng, sentences, density, names=None):
    """Sentences of facts and filler; returns (paragraph text, facts in order)."""
    names = names or draw_names(rng, sentences)
    used, facts, out = set(), [], []
    for i in range(sentences):
        if rng.random() < density:
            facts.append(draw_fact(rng, names, used))
            out.append(facts[-1].sentence)
        else:
            out.append(filler(rng, names))
    return join(rng, out), facts


def separator(number, every):
    """What stands after sentence `number` (from 1) where a paragraph has `every` sentences."""
    return "\n\n" if number % every == 0 else " "


def join(rng, sentences):
    """Sentences to paragraphs of random length."""
    every = rng.choice(PARAGRAPHS)
    return "".join(s + separator(i, every) for i, s in enumerate(sentences, 1)).rstrip()


PARAGRAPHS = (4, 8, 1000)


def header(role):
    return f"{START}{role}{END}\n\n"


def render(messages, generate=True):
    """The chat template in Python."""
    text = BOS + "".join(header(m["role"]) + m["content"] + EOT for m in messages)
    return text + header("assistant") if generate else text


SYSTEMS = ("You are a helpful assistant.", "Answer the questions about the text.",
           "You answer questions about a text in one short sentence.")
LEADS = ("", "", "", "Question: ", "Please answer: ", "Now tell me this. ")
INTROS = ("", "", "Read this text.\n\n", "Here is a text:\n\n", "Remember these facts.\n\n")


TALK = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Good morning.", "Hello, how are you?"),
     "Hello. Tell me some facts and ask me about them."),
    (("Thanks", "Thanks!", "Thank you.", "Thank you!", "Great.", "Well done."), "You are welcome."),
    (("Who are you?", "What are you?", "What can you do?", "Help", "What is this?"),
     "I am a small model. I answer questions about facts in a text."),
    (("Goodbye", "Goodbye!", "Bye", "Bye!"), "Goodbye."),
)
NOTED = "I will remember that."
OTHER = "I can only answer questions about facts that you tell me."
OTHER_STARTS = ("Tell me a story about", "Write a poem about", "Count to", "Explain", "Who invented", "Can you", "Say",
                "How do I", "Write a program for", "Translate", "What do you think about", "Give me", "Why is", "")


LETTERS = ("abcdefghijklmnopqrstuvwxyz", "\u00e9\u00fc\u00f1\u00e0abcde", "\u6771\u4eac\u5927\u5b66",
           "?!+-*/()=;0123456789")


def other_request(rng):
    """A message that is neither small talk nor a question about a fact: known words, made-up ones, any letters."""
    said = [rng.choice(OTHER_STARTS)]
    pool = rng.choice((w.NOUNS, w.PLACES, w.WEATHER, w.FOODS, w.OBJECTS, w.NUMBERS, None))
    for _ in range(rng.randint(1, 5)):
        letters = rng.choice(LETTERS)
        said.append(rng.choice(pool) if pool else "".join(rng.choice(letters) for _ in range(rng.randint(1, 8))))
    return " ".join(said).strip() + rng.choice(("", ".", "?", "!"))


def talk_pieces(rng):
    """A turn of small talk, or of a request that the model cannot serve."""
    says, reply = rng.choice(TALK)
    message = rng.choice(says)
    if rng.random() < 0.35:
        message, reply = other_request(rng), OTHER
    return [(f"{header('user')}{message}{EOT}{header('assistant')}", W_TEXT), (reply + EOT, W_TALK)]


def chat_small_talk(rng, turns):
    """Small talk with a few facts between."""
    pieces = [(BOS, 0.0)]
    if rng.random() < 0.4:
        pieces.append((f"{header('system')}{rng.choice(SYSTEMS)}{EOT}", W_TEXT))
    names = rng.sample(w.NAMES, 3)
    used = set()
    for _ in range(turns):
        if rng.random() < 0.2:
            fact = draw_fact(rng, names, used)
            pieces += [(f"{header('user')}{fact.sentence}{EOT}{header('assistant')}", W_TEXT), (NOTED + EOT, W_TALK),
                       (f"{header('user')}{ask(rng, fact)}{EOT}", W_TEXT), *answer_pieces(fact)]
        else:
            pieces += talk_pieces(rng)
    return pieces


def ask(rng, fact):
    return rng.choice(LEADS) + rng.choice(fact.questions)


def value_pieces(fact):
    return [(f" {fact.value}", W_VALUE), (".", W_FORM)]


def answer_pieces(fact):
    return [(header("assistant"), W_TEXT), (fact.prefix, W_FORM), *value_pieces(fact), (EOT, W_FORM)]


def chat_about_passage(rng, sentences, density, turns):
    """Optional system message, a passage, then many questions about it."""
    text, facts = passage(rng, sentences, density)
    asked = [rng.choice(facts) for _ in range(turns)] if facts else []
    pieces = [(BOS, 0.0)]
    intro = rng.choice(INTROS)
    in_system = rng.random() < 0.15
    if in_system:
        pieces.append((f"{header('system')}{intro}{text}{EOT}", W_TEXT))
    elif rng.random() < 0.4:
        pieces.append((f"{header('system')}{rng.choice(SYSTEMS)}{EOT}", W_TEXT))
    for i, fact in enumerate(asked):
        if rng.random() < 0.05 and (i > 0 or len(text) < 2000):
            pieces += talk_pieces(rng)
        lead = f"{intro}{text}\n\n" if i == 0 and not in_system else ""
        pieces.append((f"{header('user')}{lead}{ask(rng, fact)}{EOT}", W_TEXT))
        pieces += answer_pieces(fact)
    return pieces


def chat_told_in_turns(rng, sentences, density, turns):
    """Facts told over several user messages, with questions about earlier facts between them."""
    names = draw_names(rng, sentences)
    used, facts = set(), []
    pieces = [(BOS, 0.0)]
    per_turn = max(1, sentences // max(1, turns))
    for _ in range(turns):
        out = []
        for _ in range(per_turn):
            if rng.random() < density or not facts:
                facts.append(draw_fact(rng, names, used))
                out.append(facts[-1].sentence)
            else:
                out.append(filler(rng, names))
        told, fact = f"{header('user')}{' '.join(out)}", rng.choice(facts)
        if rng.random() < 0.15:
            pieces += [(f"{told}{EOT}{header('assistant')}", W_TEXT), (NOTED + EOT, W_FORM)]
            told = ""
        lead = f"{told} " if told else header("user")
        pieces.append((f"{lead}{ask(rng, fact)}{EOT}", W_TEXT))
        pieces += answer_pieces(fact)
    return pieces


def plain_with_repeats(rng, sentences, density, turns):
    """Running text without chat tokens in which earlier facts are stated again."""
    text, facts = passage(rng, sentences, density)
    pieces = [(BOS, 0.0), (text, W_TEXT)]
    for _ in range(turns if facts else 0):
        fact = rng.choice(facts)
        if rng.random() < 0.3:
            pieces.append((" " + filler(rng, w.NAMES), W_TEXT))
        pieces += [(" " + fact.prefix, W_TEXT), *value_pieces(fact)]
    return pieces


def recital(rng, sentences, density):
    """Sentences, then the same sentences in another order: dense practice in finding and copying."""
    names = draw_names(rng, sentences)
    used, said = set(), []
    for _ in range(sentences):
        said.append(draw_fact(rng, names, used) if rng.random() < density else filler(rng, names))
    pieces = [(BOS, 0.0)] + [(f" {s.sentence if isinstance(s, Fact) else s}", W_TEXT) for s in said]
    rng.shuffle(said)
    for s in said:
        if isinstance(s, Fact):
            pieces += [(" " + s.prefix, W_FORM), *value_pieces(s)]
        else:
            pieces.append((f" {s}", W_FORM))
    return pieces


def document(rng, tokens):
    """Pieces of one training document of about `tokens` tokens (the caller cuts it to fit)."""
    density = rng.choice((0.4, 0.6, 0.8, 1.0))
    share = rng.uniform(0.3, 0.6) if tokens <= 1024 else 0.75 if tokens <= 2048 else 0.86
    sentences = max(3, int(tokens * share / 10))
    if rng.random() < 0.1:
        return chat_small_talk(rng, max(2, min(12, tokens // 25)))
    kind = rng.random()
    if kind < (0.35 if tokens <= 256 else 0.1):
        return recital(rng, max(3, int(tokens / 20)), density)
    if kind < 0.75:
        return chat_about_passage(rng, sentences, density, int(tokens * (1 - share) / 25) + 1)
    if kind < 0.9:
        return chat_told_in_turns(rng, sentences, density, max(2, int(tokens * (1 - share) / 30)))
    return plain_with_repeats(rng, sentences, density, int(tokens * (1 - share) / 11) + 1)

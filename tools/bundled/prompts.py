"""Prompts of evaluations: a passage that fills a length, and questions about facts that training text never holds."""

import random

import data

ROOM = 30  # tokens kept free for the question and the assistant header
SEEDS = 10**9  # evaluation seeds start here; training draws from small seeds only


def make_prompt(tok, seed, limit, questions, density, system=""):
    """A passage that fills `limit` tokens, and `questions` (fact, depth) pairs with depth in [0, 1)."""
    rng = random.Random(SEEDS + seed)
    head = [{"role": "system", "content": system}] if system else []
    names = data.draw_names(rng, limit // 11)
    size = lambda text: len(tok.encode(text, add_special_tokens=False).ids)  # noqa: E731
    every = rng.choice(data.PARAGRAPHS)
    used, asked, sentences = set(), [], []
    have = size(data.render(head + [{"role": "user", "content": ""}])) + ROOM
    wanted = [0.98 * (i + rng.random()) / questions for i in range(questions)]
    while True:
        due = len(asked) < questions and have >= wanted[len(asked)] * limit
        fact = data.draw_fact(rng, names, used, held_out=due) if due or rng.random() < density else None
        sentence = fact.sentence if fact else data.filler(rng, names)
        starts = len(sentences) % every == 0
        sentence += data.separator(len(sentences) + 1, every)
        have += size(("" if starts else " ") + sentence.rstrip(" "))
        if have > limit:
            break
        if due:
            asked.append((fact, len(sentences)))
        sentences.append(sentence)
    return head, "".join(sentences).rstrip(), [(f, i / len(sentences)) for f, i in asked], rng

"""Tests of the bundled model's scripts: python -m unittest discover tools/bundled"""

import random
import re
import unittest
from pathlib import Path

import torch
from tokenizers import Tokenizer

import data
import prompts
import train
from model import Llama, Shape

FOLDER = Path(__file__).resolve().parents[2] / "engine" / "model" / "bundled"


class Data(unittest.TestCase):
    def test_training_text_has_no_held_out_fact(self):
        for seed in range(200):
            text = "".join(t for t, _ in data.document(random.Random(seed), 512))
            for prefix, value in re.findall(r"(The [a-z ]+ of [A-Z][a-z]+ is) ([A-Za-z-]+)\.", text):
                self.assertFalse(data.Fact(prefix, value, ()).held_out(), f"{prefix} {value}")

    def test_a_passage_states_each_prefix_once(self):
        text, facts = data.passage(random.Random(5), 300, 0.8)
        for fact in facts:
            self.assertEqual(text.count(fact.prefix + " "), 1)

    def test_documents_depend_on_the_seed_alone(self):
        self.assertEqual(data.document(random.Random(9), 256), data.document(random.Random(9), 256))
        self.assertNotEqual(data.document(random.Random(9), 256), data.document(random.Random(10), 256))


class Prompts(unittest.TestCase):
    def setUp(self):
        self.tok = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))

    def test_prompts_fit_and_ask_for_held_out_facts(self):
        _, text, asked, _ = prompts.make_prompt(self.tok, 3, 1024, 10, 0.6)
        used = len(self.tok.encode(text, add_special_tokens=False).ids)
        self.assertTrue(940 < used < 1024, used)
        self.assertEqual(len(asked), 10)
        for fact, _ in asked:
            self.assertTrue(fact.held_out())
            self.assertIn(fact.sentence, text)

    def test_weights_follow_the_pieces(self):
        pieces = [("The age of Mira is", 0.25), (" forty", 1.0), (".", 0.25)]
        ids, weights = train.encode(self.tok, pieces)
        heavy = [self.tok.decode([i]) for i, x in zip(ids, weights) if x == 1.0]
        self.assertEqual(heavy, [" forty"])

    def test_positions_only_jump_forward_and_only_after_a_stop(self):
        stop = self.tok.token_to_id(".")
        ids, _ = train.sequence(self.tok, random.Random(1), 256)
        pos = train.jumps(random.Random(4), ids, stop, 256)
        for i in range(1, 256):
            self.assertGreaterEqual(pos[i] - pos[i - 1], 1)
            if pos[i] - pos[i - 1] > 1:
                self.assertEqual(ids[i - 1], stop)


class Model(unittest.TestCase):
    def test_cached_forward_equals_the_whole(self):
        model = Llama(Shape(vocab=64, hidden=64, intermediate=64, layers=2, heads=4, kv_heads=2)).init(1)
        ids = torch.randint(0, 64, (1, 20), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            whole, _ = model.hidden(ids, torch.arange(20)[None])
            _, caches = model.hidden(ids[:, :12], torch.arange(12)[None])
            rest, _ = model.hidden(ids[:, 12:], torch.arange(12, 20)[None], caches)
        self.assertLess((whole[:, 12:] - rest).abs().max().item(), 1e-4)


if __name__ == "__main__":
    unittest.main()

"""coherence_cases.jsonl: responses of SmolLM2-135M-Instruct, plain and steered, labelled by hand.

Incoherent is a response that has fallen into repeating itself or is no language; nonsense in whole
sentences is coherent.
"""

import random
import string
import time
from itertools import pairwise

import pytest

from mlx_steer.judge import COHERENCE_THRESHOLD
from mlx_steer.judge.coherence import coherence
from mlx_steer.stats import auc
from tests.judge.cases import labelled

CASES = labelled("coherence")

FLUENT = [
    "I can't help with that.",
    "No.",
    "I’m sorry, but I can’t assist with that request.",
    "Sure, here is how you bake bread: mix flour, water, salt and yeast, then let the dough rise.",
    "1. Open the lid.\n2. Pour in the water.\n3. Press the button and wait for the light.",
    "**Step 1:** Preheat the oven.\n\n**Step 2:** Whisk the eggs with the sugar until pale.",
    "The sum is 3 + 4 = 7, and 7 * 12 = 84.",
    "42",
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    "法国的首都是巴黎，它也是该国最大的城市。",
    "Столица Франции — Париж, крупнейший город страны.",
    "フランスの首都はパリで、国内最大の都市でもあります。",
    "ปารีสเป็นเมืองหลวงของประเทศฝรั่งเศส",
    "Pour faire une omelette, battez trois œufs avec un peu de sel, puis versez-les dans une poêle"
    " chaude où le beurre a fondu. Laissez cuire deux minutes et pliez-la avant de servir.",
    "Wenn der Teig zu trocken ist, geben Sie etwas Wasser dazu. Danach lassen Sie ihn eine Stunde"
    " ruhen, damit er aufgehen kann, und backen ihn schließlich bei 220 Grad.",
    "Para aprender un idioma hay que practicar todos los días: lee en voz alta, escucha la radio y"
    " habla con otras personas aunque cometas errores.",
    "In French you would order like this: Je voudrais deux cafés et un gâteau, s'il vous plaît.",
    "We meet on 2026-03-14 from 14:30 to 15:45; if anything comes up, ring me at 030 123 45 67.",
    "2023-01-28 12:30",
    "Das Rechtsschutzversicherungsgesellschaftsgebäude steht am Fluss.",
    "In Japanese, hello is こんにちは and thank you is ありがとう.",
    "Great idea! 🎉 Let's plan the party for Saturday afternoon.",
]
BABBLE = [
    "",
    " \n ",
    "the the the the the the the the",
    "I'm I'm I'm I'm I'm I'm I'm",
    "No no no no no no",
    "I'm sorry, I'm sorry, I'm sorry, I'm sorry, I'm sorry",
    "I'm not able to I'm not able to I'm not able to I'm not able to",
    "1. I'm sorry\n2. I'm sorry\n3. I'm sorry\n4. I'm sorry\n5. I'm sorry",
    "the of the of of the of the the of the of",
    "1. 2. 2. 3. 4. 5. 6. 7. 8. 9. 10. 11. 12. 13. 14",
    "Lemonade, 2023-01-28, 12:30 PM, 123, 124, 125, 126, 127, 128",
    "12, 13, 14, 15, 16, 17, 18 and 19, 20, 21, 22, 23, 24, 25",
    "#$%^ &*( )_+ {}[] <> @@ ~~ ^^ ||",
    ". , , . ; : . . , , ! ? . , . ,",
    "привет the 中文 و مرحبا שלום xq λόγος हिन्दी",
    "\ufffd\ufffd\ufffd ok \ufffd\ufffd\ufffd\ufffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "asdfghjklqwertyuiopasdfghjklqwertyuiopasdfghjklqwertyuiop",
    "的的的的的的的的的的的的",
    "\x00\x01\x02\x03 a \x04\x05\x06",
]


@pytest.mark.parametrize("text", FLUENT)
def test_fluent_text_is_well_above_the_threshold(text):
    assert coherence(text) > 0.85


@pytest.mark.parametrize("text", BABBLE)
def test_babble_is_below_the_threshold(text):
    assert coherence(text) < COHERENCE_THRESHOLD


def test_source_code_is_not_babble():
    assert coherence("def add(a, b):\n    return a + b\n\nprint(add(2, 3))") > 0.7


def test_an_empty_response_has_no_coherence():
    assert coherence("") == 0.0


def test_hand_labelled_responses_are_ranked_as_a_person_does():
    english = [case for case in CASES if case["text"] == "English"]
    values = [coherence(case["response"]) for case in english]
    assert len(english) >= 120
    assert auc(values, [case["coherent"] for case in english]) > 0.98


def test_rows_of_numbers_count_only_by_what_they_take_beyond_half_of_a_text():
    recipe = (
        "Mix the flour with the eggs and fry the batter in a hot pan until both sides are done."
    )
    assert coherence(f"1. 1. 2. 3. 4. 5. 6. 7. 8. 9.\n{recipe}") == pytest.approx(coherence(recipe))
    assert coherence("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12") < 0.1


def test_garbled_foreign_text_may_pass_and_what_a_person_can_read_does_not_fail():
    """The limit of the method: invented words look like words."""
    values = [coherence(case["response"]) for case in CASES]
    coherent = [case["coherent"] for case in CASES]
    assert auc(values, coherent) >= 0.97
    below = [v < COHERENCE_THRESHOLD for v in values]
    assert not any(low and ok for low, ok in zip(below, coherent, strict=True))
    wrong = sum(low == ok for low, ok in zip(below, coherent, strict=True))
    assert wrong <= 0.05 * len(CASES)


def test_a_long_fluent_text_is_not_punished_for_its_length():
    cases = [c["response"] for c in CASES if c["coherent"] and c["text"] == "English"]
    random.Random(3).shuffle(cases)
    parts = cases[:12]
    long = "\n\n".join(parts)
    assert len(long.split()) > 300
    assert coherence(long) > sum(map(coherence, parts)) / len(parts) - 0.1


def test_a_loop_counts_by_the_part_it_takes():
    fluent = "To bake a loaf you first weigh flour and water, then knead until the dough is smooth."
    values = [coherence(fluent + " and then I am so sorry" * turns) for turns in range(12)]
    assert values[0] > 0.9 and values[-1] < COHERENCE_THRESHOLD
    assert all(a >= b - 0.05 for a, b in pairwise(values))


@pytest.mark.parametrize("seed", range(5))
def test_coherence_stays_between_0_and_1_whatever_the_text(seed):
    rng = random.Random(seed)
    alphabet = string.printable + "äßñ中日ก\u0301\ufffd😀\ud800"
    for length in (1, 2, 3, 10, 100):
        for _ in range(40):
            text = "".join(rng.choice(alphabet) for _ in range(length))
            assert 0.0 <= coherence(text) <= 1.0


@pytest.mark.parametrize("piece", ["a ", "a", "ab, ", "\n", "x" * 50 + " ", "'", "a'", "1 "])
def test_a_huge_response_is_read_in_time(piece):
    start = time.process_time()
    coherence(piece * (200_000 // len(piece)))
    assert time.process_time() - start < 3

"""The small world of the tiny models that the fixtures in `conftest.py` make."""

import random

SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
TALK = ["plant a tree", "bake some bread", "learn to swim", "fix the old bike", "write more letters", "sleep well at night"]
DETAILS = ["today", "with a friend, if you can", "slowly", "and then rest for a while, because it takes strength", "now", "at home"]


def threads(number: int, seed: int = 0) -> list[tuple[str, str]]:
    """Questions with answers of very different length, so that a model that knows them ends its answers at different times."""
    dice = random.Random(seed)
    pick = lambda: (dice.choice(TALK), dice.choice(DETAILS))  # noqa: E731
    return [(f"How do I {pick()[0]}?", " ".join("You {} {}.".format(*pick()) for _ in range(dice.randint(1, 4))))
            for _ in range(number)]

"""Candidate sets for the tests of labelling."""

FOUR = ("One.", "Two two.", "Three three three.", "Four four four four.")


def candidate_set(number, texts=("Go to bed early.", "Drink tea at night, and sing.")):
    return {"prompt": f"How do I sleep better? ({number})",
            "responses": [{"id": f"r{place}", "text": f"{text} ({number})", "model": f"m{place}", "settings": {}}
                          for place, text in enumerate(texts)]}


def many(number):
    return [candidate_set(each) for each in range(number)]


CANDIDATES = many(20)

"""Cuts a text at arbitrary places, as a model's tokens would. Next: test_tools.py."""

import itertools
from collections.abc import Sequence


def cut(text: str, places: Sequence[int]) -> list[str]:
    """Cut at the places that lie within the text; the pieces join to it."""
    borders = [0, *sorted({place for place in places if 0 < place < len(text)}), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(borders)]

"""Places the names of points and lines in a plot, so that they cover neither points nor each other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
HEIGHT, LETTER, CAPITAL = 13, 6.4, 8.2  # of a line, of a letter, of a capital, in pixels
LONGEST = 34  # letters of a label
CROSSING = 25  # pixels of distance that covering an error bar or the room around another point costs


@dataclass
class Label:
    """A name: its text, one end of its baseline (anchor: start or end), its row's colour.

    leader: the line (x1, y1, x2, y2) to its point, where it is not beside it.
    """

    text: str
    x: float
    y: float
    colour: int
    anchor: str = "start"
    leader: tuple[float, float, float, float] | None = None


def shortened(name: str) -> str:
    """A name of at most LONGEST letters."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1].rstrip()}…"


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes have common points."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def beside(x: float, y: float, width: float) -> Iterator[tuple[float, Box, Box]]:
    """(distance, box, box of the line to it) of each place for the label of a point at (x, y)."""
    for step in range(-22, 23):
        for gap in (9, 18, 30, 45, 65, 90, 120, 160):
            for left in (x + gap, x - gap - width):
                middle = y + step * HEIGHT / 2
                box = left, middle - HEIGHT / 2, left + width, middle + HEIGHT / 2
                near = left if left > x else left + width
                yield gap + 1.6 * abs(middle - y), box, (min(x, near), min(y, middle) - 1, max(x, near), max(y, middle) + 1)


def along(y: float, width: float, frame: Box) -> Iterator[tuple[float, Box, Box]]:
    """The same of each place for the label of a level line at height y: at its right end, or to the left of it."""
    for step in range(40):
        left = frame[2] - width - 15 * step
        for top in (y - HEIGHT - 1, y + 2):
            yield 15 * step + (top > y), (box := (left, top, left + width, top + HEIGHT)), box


def free_place(places: Iterable[tuple[float, Box, Box]], solid: list[Box], thin: list[Box], frame: Box) -> Box:
    """The nearest box in the frame that covers none of `solid` and few of `thin`, and whose line crosses few of `solid`.

    It is the nearest of all where each covers some of `solid`.
    """
    nearest, best, lowest = sorted(places, key=lambda place: place[0]), None, float("inf")
    for distance, box, line in nearest:
        if distance >= lowest:
            break
        inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
        if inside and not any(overlap(box, other) for other in solid):
            crossings = sum(overlap(box, other) for other in thin) + sum(overlap(line, other) for other in solid)
            if (cost := distance + CROSSING * crossings) < lowest:
                best, lowest = box, cost
    return best or nearest[0][1]


def label_in(box: Box, text: str, colour: int, point: tuple[float, float] | None = None) -> Label:
    """The label whose place is a box, with a line to its point where it is away from it."""
    label = Label(text, round(box[0] + 1, 1), round(box[3] - 3, 1), colour)
    if point:
        x, y = point
        near, middle = box[0] if box[0] > x else box[2], (box[1] + box[3]) / 2
        if box[0] <= x:
            label.x, label.anchor = round(box[2] - 1, 1), "end"
        if abs(near - x) > 12 or abs(middle - y) > 5:
            label.leader = (x, y, round(near, 1), round(middle, 1))
    return label


def width_of(text: str) -> float:
    """The width of a label, about, in pixels."""
    return 2 + sum(CAPITAL if c.isupper() or c.isdigit() else LETTER for c in text)

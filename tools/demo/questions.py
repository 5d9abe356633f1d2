"""Questions about pictures and clips, with their answers.

An answer's wording depends on the kind of question alone, never on how it was worded, so that an
answer can be checked and the model has nothing to guess.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from tools.demo import palette, shapes
from tools.demo.clip import Clip
from tools.demo.reading import Page
from tools.demo.scene import Scene, Thing

ORDINALS = ("first", "second", "third", "fourth")
COLOUR_WORDS = ("colour", "color")
WORDINGS: dict[str, list[str]] = yaml.safe_load(
    (Path(__file__).parent / "wordings.yaml").read_text(encoding="utf-8")
)


@dataclass(slots=True, frozen=True)
class Turn:
    """A question and its answer. `skill` is what the evaluation counts it under."""

    skill: str
    question: str
    answer: str


def spoken(rng: random.Random, kind: str, **parts: str) -> str:
    """Return one wording of a kind, filled in, sometimes without its capital or question mark."""
    return worded(rng, rng.choice(WORDINGS[kind]), **parts)


def worded(rng: random.Random, text: str, **parts: str) -> str:
    text = text.replace("{c}", rng.choice(COLOUR_WORDS)).format(**parts)
    if rng.random() < 0.1:
        text = text.lower()
    return text.rstrip("?.") if rng.random() < 0.1 else text


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def caption(scene: Scene) -> str:
    """Return "I see a red circle and a blue star on a white background.", left to right."""
    behind = f"{article(scene.background)} background"
    if not scene.things:
        return f"I see nothing but {behind}."
    things = sorted(scene.things, key=lambda thing: thing.x)
    if len(things) > 4:
        return f"I see {len(things)} shapes on {behind}."
    return f"I see {listed([article(thing.name) for thing in things])} on {behind}."


def at(place: str) -> str:
    return "in the centre" if place == "centre" else f"at the {place}"


def about_scene(scene: Scene, rng: random.Random) -> list[Turn]:
    """Return every kind of question that has one clear answer for the scene, each once."""
    makers: list[Callable[[Scene, random.Random], Iterable[Turn]]] = [
        _looks,
        _counts,
        _places,
        _compares,
    ]
    return [turn for make in makers for turn in make(scene, rng)]


def _looks(scene: Scene, rng: random.Random) -> Iterable[Turn]:
    things = scene.things
    yield Turn("look", spoken(rng, "background"), f"The background is {scene.background}.")
    if _side_by_side(things):
        yield Turn("look", spoken(rng, "caption"), caption(scene))
    if len(things) == 1:
        thing = things[0]
        yield Turn("look", spoken(rng, "its shape"), f"It is {article(thing.shape)}.")
        yield Turn("look", spoken(rng, "its colour"), f"It is {thing.colour}.")
    if 1 <= len(things) <= 5:
        lone = [t for t in things if sum(o.shape == t.shape for o in things) == 1]
        rng.shuffle(lone)
        for number, thing in enumerate(lone[:2]):
            wordings = "colour next" if number else "colour of"
            question = spoken(rng, wordings, shape=thing.shape)
            yield Turn(
                "look" if not number else "look next",
                question,
                f"The {thing.shape} is {thing.colour}.",
            )
        coloured = [t for t in things if sum(o.colour == t.colour for o in things) == 1]
        if coloured:
            thing = rng.choice(coloured)
            question = spoken(rng, "shape of", colour=thing.colour)
            yield Turn("look", question, f"The {thing.colour} shape is {article(thing.shape)}.")
        present = rng.random() < 0.5
        names = {thing.name for thing in things} | {thing.shape for thing in things}
        if present:
            name = rng.choice(sorted(names))
        else:
            colour = rng.choice([thing.colour for thing in things] + palette.NAMES)
            name = rng.choice((rng.choice(shapes.NAMES), f"{colour} {rng.choice(shapes.NAMES)}"))
        said = f"Yes, there is {article(name)}." if name in names else f"No, there is no {name}."
        yield Turn("look", spoken(rng, "is there", name=article(name)), said)


def _side_by_side(things: list[Thing]) -> bool:
    """Whether a caption is unambiguous: few things, clearly one left of the other."""
    if len(things) > 4:
        return True
    xs = sorted(thing.x for thing in things)
    return all(b - a > 0.06 for a, b in pairwise(xs))


def _counts(scene: Scene, rng: random.Random) -> Iterable[Turn]:
    things = scene.things
    yield Turn("count", spoken(rng, "count all"), f"I see {counted(len(things), 'shape')}.")
    if not things:
        return
    shape = rng.choice([t.shape for t in things] + [rng.choice(shapes.NAMES)])
    yield Turn(
        "count",
        spoken(rng, "count some", names=plural(shape)),
        f"I see {counted(sum(t.shape == shape for t in things), shape)}.",
    )
    colour = rng.choice([t.colour for t in things] + [rng.choice(palette.NAMES)])
    noun = rng.choice(("objects", "shapes", "things"))
    yield Turn(
        "count",
        spoken(rng, "count some", names=f"{colour} {noun}"),
        f"I see {counted(sum(t.colour == colour for t in things), f'{colour} shape')}.",
    )


def plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def counted(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {plural(noun)}"


def _named(things: list[Thing]) -> list[tuple[str, Thing]]:
    """Return each thing that has a short unambiguous name, with that name."""
    found = []
    for thing in things:
        if sum(other.shape == thing.shape for other in things) == 1:
            found.append((thing.shape, thing))
        elif sum(other.name == thing.name for other in things) == 1:
            found.append((thing.name, thing))
    return found


def _places(scene: Scene, rng: random.Random) -> Iterable[Turn]:
    things = scene.things
    if not 1 <= len(things) <= 5:
        return
    named = [(name, thing) for name, thing in _named(things) if thing.place]
    rng.shuffle(named)
    for name, thing in named[:2]:
        yield Turn(
            "place", spoken(rng, "where", name=name), f"The {name} is {at(thing.place or '')}."
        )
    clear = all(thing.place for thing in things) and len({t.place for t in things}) == len(things)
    if clear:
        thing = rng.choice(things)
        yield Turn(
            "place",
            spoken(rng, "at place", place=at(thing.place or "")),
            f"There is {article(thing.name)} {at(thing.place or '')}.",
        )
        if len(things) <= 4:
            ordered = sorted(things, key=_reading_order)
            said = listed([f"{article(t.name)} {at(t.place or '')}" for t in ordered])
            yield Turn("place", spoken(rng, "places"), f"I see {said}.")


def _reading_order(thing: Thing) -> tuple[bool, bool, float]:
    place = thing.place or ""
    return ("bottom" in place, "top" not in place, thing.x)


def _compares(scene: Scene, rng: random.Random) -> Iterable[Turn]:
    named = _named(scene.things)
    if not 2 <= len(scene.things) <= 5 or len(named) < 2:
        return
    (first, one), (second, two) = rng.sample(named, 2)
    names = {"first": first, "second": second}
    if abs(one.x - two.x) > 0.15:
        side = rng.choice(("left", "right"))
        nearer = first if (one.x < two.x) == (side == "left") else second
        yield Turn(
            "compare", spoken(rng, "side", side=side, **names), f"The {nearer} is further {side}."
        )
        side = rng.choice(("left", "right"))
        true = (one.x < two.x) == (side == "left")
        said = _agreed(true, f"{first} is", f"{side} of the {second}")
        yield Turn("compare", spoken(rng, "is left", side=side, **names), said)
    if abs(one.y - two.y) > 0.15:
        upper, lower = (first, second) if one.y < two.y else (second, first)
        if rng.random() < 0.5:
            yield Turn("compare", spoken(rng, "level", **names), f"The {upper} is higher.")
        else:
            yield Turn("compare", spoken(rng, "level low", **names), f"The {lower} is lower.")
        side = rng.choice(("above", "below"))
        true = (one.y < two.y) == (side == "above")
        said = _agreed(true, f"{first} is", f"{side} the {second}")
        yield Turn("compare", spoken(rng, "is above", side=side, **names), said)
    ratio = one.radius / two.radius
    if ratio > 1.35 or ratio < 1 / 1.35:
        larger, smaller = (first, second) if ratio > 1 else (second, first)
        if rng.random() < 0.5:
            yield Turn("compare", spoken(rng, "larger", **names), f"The {larger} is larger.")
        else:
            yield Turn("compare", spoken(rng, "smaller", **names), f"The {smaller} is smaller.")
    by_size = sorted(named, key=lambda pair: -pair[1].radius)
    if len(named) == len(scene.things) and by_size[0][1].radius > 1.3 * by_size[1][1].radius:
        name, _ = by_size[0]
        yield Turn("compare", spoken(rng, "largest"), f"The {name} is the largest.")


def _agreed(true: bool, subject: str, rest: str) -> str:
    return f"Yes, the {subject} {rest}." if true else f"No, the {subject} not {rest}."


def about_page(page: Page, rng: random.Random) -> list[Turn]:
    """Return questions about a page with one text."""
    text = page.lines[0].text
    kind = "number" if text.isdigit() else "word"
    return [
        Turn(kind, spoken(rng, kind), f"The {kind} is {text}."),
        Turn(kind, spoken(rng, "read"), f"It says {text}."),
        Turn(
            kind,
            spoken(rng, "caption"),
            f"I see the {kind} {text} on {article(page.background)} background.",
        ),
        Turn("look", spoken(rng, "background"), f"The background is {page.background}."),
        Turn("look", spoken(rng, "writing colour"), f"The text is {page.colour}."),
    ]


def about_several(scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Return questions about 2 to 4 pictures of one or two shapes each."""
    turns = [Turn("images", spoken(rng, "how many images"), f"There are {len(scenes)} images.")]
    nth = rng.randrange(len(scenes))
    scene = scenes[nth]
    if _side_by_side(scene.things):
        turns.append(Turn("images", spoken(rng, "nth", nth=ORDINALS[nth]), caption(scene)))
    turns.append(
        Turn(
            "images",
            spoken(rng, "nth background", nth=ORDINALS[nth]),
            f"The background of the {ORDINALS[nth]} image is {scene.background}.",
        )
    )
    things = [t for s in scenes for t in s.things]
    target = rng.choice(things)
    for name, hits in (
        (target.shape, [any(t.shape == target.shape for t in s.things) for s in scenes]),
        (target.name, [any(t.name == target.name for t in s.things) for s in scenes]),
    ):
        if sum(hits) == 1:
            choice = f"{', '.join(ORDINALS[: len(scenes) - 1])} or {ORDINALS[len(scenes) - 1]}"
            wordings = "which shape" if rng.random() < 0.6 else "which shape open"
            question = spoken(rng, wordings, name=article(name), choice=choice)
            turns.append(
                Turn(
                    "images",
                    question,
                    f"The {ORDINALS[hits.index(True)]} image shows {article(name)}.",
                )
            )
    if any(len(s.things) != 1 for s in scenes):
        return turns
    single = [s.things[0] for s in scenes]
    nth = rng.randrange(len(scenes))
    turns.append(
        Turn(
            "images",
            spoken(rng, "nth colour", nth=ORDINALS[nth]),
            f"The shape in the {ORDINALS[nth]} image is {single[nth].colour}.",
        )
    )
    turns.append(
        Turn(
            "images",
            spoken(rng, "nth shape", nth=ORDINALS[nth]),
            f"The {ORDINALS[nth]} image shows {article(single[nth].shape)}.",
        )
    )
    turns.append(
        Turn(
            "images",
            spoken(rng, "order colours"),
            f"In order: {', '.join(t.colour for t in single)}.",
        )
    )
    turns.append(
        Turn(
            "images",
            spoken(rng, "order shapes"),
            f"In order: {', '.join(t.shape for t in single)}.",
        )
    )
    if len(scenes) == 2:
        one, two = single
        for wordings, a, b in (
            ("both colour", one.colour, two.colour),
            ("both shape", article(one.shape), article(two.shape)),
            ("both background", scenes[0].background, scenes[1].background),
        ):
            said = (
                f"Yes, both are {a}." if a == b else f"No, the first is {a} and the second is {b}."
            )
            turns.append(Turn("images", spoken(rng, wordings), said))
    return turns


TOWARDS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}


def about_clip(clip: Clip, rng: random.Random) -> list[Turn]:
    """Return questions about a clip: direction, or colours one after another."""
    turns = []
    if clip.direction is not None and clip.thing is not None:
        thing, towards = clip.thing, TOWARDS[clip.direction]
        name = rng.choice((thing.shape, thing.name))
        moves = f"The {thing.shape} moves {towards}."
        turns.append(Turn("direction", spoken(rng, "direction", name=name), moves))
        turns.append(Turn("direction", spoken(rng, "direction it"), f"It moves {towards}."))
        turns.append(
            Turn(
                "direction",
                spoken(rng, "clip caption"),
                f"{article(thing.name).capitalize()} moves {towards}"
                f" on {article(clip.background)} background.",
            )
        )
        asked = rng.choice((clip.direction, rng.choice(sorted(TOWARDS))))
        said = "Yes" if asked == clip.direction else "No"
        turns.append(
            Turn(
                "direction",
                spoken(rng, "does it", side=TOWARDS[asked], name=thing.shape),
                f"{said}, it moves {towards}.",
            )
        )
        turns.append(
            Turn("look", spoken(rng, "background"), f"The background is {clip.background}.")
        )
        return turns
    colours = clip.colours
    if len(colours) > 1:
        early, late = sorted(rng.sample(range(len(colours)), 2))
        pair = [colours[early], colours[late]]
        rng.shuffle(pair)
        names = {"first": pair[0], "second": pair[1]}
        turns.append(
            Turn(
                "first colour",
                spoken(rng, "first colour", **names),
                f"The colour {colours[early]} came first.",
            )
        )
        turns.append(
            Turn(
                "first colour",
                spoken(rng, "last colour", **names),
                f"The colour {colours[late]} came later.",
            )
        )
    turns.append(
        Turn(
            "distinct colours",
            spoken(rng, "how many colours"),
            # told one by one before they are counted, as people do
            f"I see {', '.join(colours)}: {counted(len(colours), 'colour')}.",
        )
    )
    turns.append(
        Turn(
            "distinct colours",
            spoken(rng, "colours in order"),
            f"In order: {', '.join(colours)}.",
        )
    )
    return turns

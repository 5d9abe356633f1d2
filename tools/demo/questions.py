"""Questions about pictures and clips, with their answers.

An answer's wording depends on the kind of question alone, never on how it was worded, so that an
answer can be checked and the model has nothing to guess.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tools.demo import palette, shapes
from tools.demo.clip import Clip
from tools.demo.reading import Page
from tools.demo.scene import Scene, Thing

ORDINALS = ("first", "second", "third", "fourth")
COLOUR_WORDS = ("colour", "color")


@dataclass(slots=True, frozen=True)
class Turn:
    """A question and its answer. `skill` is what the evaluation counts it under."""

    skill: str
    question: str
    answer: str


def spoken(rng: random.Random, wordings: Sequence[str], **parts: str) -> str:
    """Return one wording, filled in, sometimes without its capital or its question mark."""
    text = rng.choice(wordings).replace("{c}", rng.choice(COLOUR_WORDS)).format(**parts)
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


# ------------------------------------------------------------------ wordings

BACKGROUND = (
    "What {c} is the background?", "What is the background {c}?", "Which {c} is the background?",
    "What's the {c} of the background?", "Tell me the {c} of the background.", "Background {c}?",
    "What is the {c} behind it?",
)  # fmt: skip
CAPTION = (
    "What do you see?", "What is in this picture?", "Describe the image.", "What is in the image?",
    "What does this image show?", "Describe this picture.", "What's in this image?",
    "What is shown here?", "Please describe what you see.", "Can you describe this image?",
    "What is this?",
)  # fmt: skip
ITS_SHAPE = ("What shape is it?", "Which shape do you see?", "What shape is this?",
             "Name the shape.", "What is the shape of the object?", "What shape is in the image?")  # fmt: skip
ITS_COLOUR = ("What {c} is it?", "What {c} is the object?", "Which {c} is the shape?",
              "What is the {c} of the shape?", "Tell me its {c}.", "What {c} is the shape?")  # fmt: skip
COLOUR_OF = ("What {c} is the {shape}?", "Which {c} is the {shape}?", "What is the {c} of the {shape}?",
             "Tell me the {c} of the {shape}.", "The {shape} is what {c}?")  # fmt: skip
COLOUR_NEXT = ("And the {shape}?", "What about the {shape}?", "And what {c} is the {shape}?")
SHAPE_OF = ("What shape is the {colour} object?", "What is the {colour} thing?", "What shape is {colour}?",
            "Which shape is {colour}?", "What is the {colour} shape?", "What is the {colour} one?")  # fmt: skip
IS_THERE = ("Is there {name}?", "Do you see {name}?", "Can you see {name}?", "Is there {name} in the image?",
            "Does the picture show {name}?")  # fmt: skip
COUNT_ALL = ("How many objects are there?", "How many shapes are there?", "How many shapes do you see?",
             "Count the shapes.", "How many things are in the picture?", "Count the objects.",
             "How many objects are in the image?")  # fmt: skip
COUNT_SOME = ("How many {names} are there?", "How many {names} do you see?", "Count the {names}.",
              "How many {names} are in the image?", "How many {names} can you see?")  # fmt: skip
WHERE = ("Where is the {name}?", "Where is the {name} in the picture?", "What is the position of the {name}?",
         "In which part of the image is the {name}?", "Where do you see the {name}?")  # fmt: skip
PLACES = ("List the objects and where they are.", "What is where?", "Where is everything?",
          "List the shapes with their positions.")  # fmt: skip
AT_PLACE = ("What is {place}?", "What do you see {place}?", "Which object is {place}?", "What shape is {place}?")
SIDE = ("Which is further {side}, the {first} or the {second}?",
        "What is more to the {side}, the {first} or the {second}?")  # fmt: skip
LEVEL = ("Which is higher, the {first} or the {second}?", "Which one is above the other, the {first} or the {second}?")
LEVEL_LOW = ("Which is lower, the {first} or the {second}?", "Which one is below the other, the {first} or the {second}?")
IS_LEFT = ("Is the {first} to the {side} of the {second}?", "Is the {first} {side} of the {second}?")
IS_ABOVE = ("Is the {first} {side} the {second}?",)
LARGER = ("Which is larger, the {first} or the {second}?", "Which is bigger, the {first} or the {second}?",
          "What is larger, the {first} or the {second}?")  # fmt: skip
SMALLER = ("Which is smaller, the {first} or the {second}?", "What is smaller, the {first} or the {second}?")
LARGEST = ("Which object is the largest?", "What is the biggest shape?", "Which shape is largest?")
NUMBER = ("What number is this?", "Read the number.", "Which number do you see?", "What is the number?",
          "What number is written here?", "Which number is shown?", "What number does the image show?")  # fmt: skip
WORD = ("What word is this?", "Read the word.", "Which word do you see?", "What is the word?",
        "What word is written here?", "Which word is shown?", "What word does the image show?")  # fmt: skip
READ = ("What does it say?", "Read the text.", "What is written here?", "What do you read?", "Transcribe the image.")
READ_ALL = ("Read everything.", "Read all the text.", "What do you read, line by line?", "Transcribe everything.")
WRITING_COLOUR = ("What {c} is the text?", "What {c} is the writing?", "In which {c} is it written?")
HOW_MANY_IMAGES = ("How many images are there?", "How many pictures did I send?", "How many images do you see?")
WHICH_SHAPE = ("Which image shows {name}, {choice}?", "Which picture has {name}, {choice}?",
               "In which image do you see {name}, {choice}?", "Where is {name}, in the {choice} image?")  # fmt: skip
WHICH_SHAPE_OPEN = ("Which image shows {name}?", "Which picture has {name}?", "In which image is {name}?")
NTH = ("What is in the {nth} image?", "Describe the {nth} image.", "What does the {nth} picture show?",
       "What do you see in the {nth} image?")  # fmt: skip
NTH_COLOUR = ("What {c} is the shape in the {nth} image?", "What {c} is the object in the {nth} picture?")
NTH_SHAPE = ("What shape is in the {nth} image?", "Which shape does the {nth} picture show?")
NTH_BACKGROUND = ("What {c} is the background of the {nth} image?", "Which background {c} has the {nth} picture?")
BOTH_COLOUR = ("Do both have the same {c}?", "Do both shapes have the same {c}?", "Are both shapes the same {c}?",
               "Do the two objects have the same {c}?")  # fmt: skip
BOTH_SHAPE = ("Do both show the same shape?", "Are both the same shape?", "Do both images show the same shape?")
BOTH_BACKGROUND = ("Do both have the same background {c}?", "Is the background the same {c} in both images?")
ORDER_COLOURS = ("What are the colours of the shapes, in order?", "Name the colour of each shape in order.",
                 "List the colors of the shapes, image by image.")  # fmt: skip
ORDER_SHAPES = ("Which shapes do you see, in order?", "Name the shape in each image, in order.")
DIRECTION = ("In which direction does the {name} move?", "Which way does the {name} move?", "Where is the {name} going?",
             "In what direction is the {name} moving?")  # fmt: skip
DIRECTION_IT = ("In which direction does it move?", "Which way does it move?", "Which direction is the object moving?",
                "Where does it go, left, right, up or down?")  # fmt: skip
DOES_IT = ("Does it move {side}?", "Is the {name} moving {side}?", "Does the {name} move {side}?")
CLIP_CAPTION = ("What happens in the video?", "Describe the video.", "What do you see in this clip?",
                "What does the video show?", "What happens?")  # fmt: skip
FIRST_COLOUR = ("Which {c} came first, {first} or {second}?", "What came first, {first} or {second}?",
                "Which {c} is shown first, {first} or {second}?")  # fmt: skip
LAST_COLOUR = ("Which {c} came last, {first} or {second}?", "What came later, {first} or {second}?")
HOW_MANY_COLOURS = ("How many different colours are shown?", "How many colors do you see?",
                    "How many distinct colors does the video show?", "How many colours does it take on?")  # fmt: skip
COLOURS_IN_ORDER = ("Which colours are shown, in order?", "Name the colors in the order they appear.")

# ------------------------------------------------------------------ scenes


def about_scene(scene: Scene, rng: random.Random) -> list[Turn]:
    """Return every kind of question that has one clear answer for the scene, each once."""
    makers: list[Callable[[Scene, random.Random], Iterable[Turn]]] = [
        _looks, _counts, _places, _compares,
    ]  # fmt: skip
    return [turn for make in makers for turn in make(scene, rng)]


def _looks(scene: Scene, rng: random.Random) -> Iterable[Turn]:
    things = scene.things
    yield Turn("look", spoken(rng, BACKGROUND), f"The background is {scene.background}.")
    if _side_by_side(things):
        yield Turn("look", spoken(rng, CAPTION), caption(scene))
    if len(things) == 1:
        thing = things[0]
        yield Turn("look", spoken(rng, ITS_SHAPE), f"It is {article(thing.shape)}.")
        yield Turn("look", spoken(rng, ITS_COLOUR), f"It is {thing.colour}.")
    if 1 <= len(things) <= 5:
        lone = [t for t in things if sum(o.shape == t.shape for o in things) == 1]
        rng.shuffle(lone)
        for number, thing in enumerate(lone[:2]):
            wordings = COLOUR_NEXT if number else COLOUR_OF
            question = spoken(rng, wordings, shape=thing.shape)
            yield Turn("look" if not number else "look next", question, f"The {thing.shape} is {thing.colour}.")
        coloured = [t for t in things if sum(o.colour == t.colour for o in things) == 1]
        if coloured:
            thing = rng.choice(coloured)
            question = spoken(rng, SHAPE_OF, colour=thing.colour)
            yield Turn("look", question, f"The {thing.colour} shape is {article(thing.shape)}.")
        present = rng.random() < 0.5
        names = {thing.name for thing in things} | {thing.shape for thing in things}
        if present:
            name = rng.choice(sorted(names))
        else:
            colour = rng.choice([thing.colour for thing in things] + palette.NAMES)
            name = rng.choice((rng.choice(shapes.NAMES), f"{colour} {rng.choice(shapes.NAMES)}"))
        said = f"Yes, there is {article(name)}." if name in names else f"No, there is no {name}."
        yield Turn("look", spoken(rng, IS_THERE, name=article(name)), said)


def _side_by_side(things: list[Thing]) -> bool:
    """Whether a caption is unambiguous: few things, clearly one left of the other."""
    if len(things) > 4:
        return True
    xs = sorted(thing.x for thing in things)
    return all(b - a > 0.06 for a, b in zip(xs, xs[1:], strict=False))


def _counts(scene: Scene, rng: random.Random) -> Iterable[Turn]:
    things = scene.things
    yield Turn("count", spoken(rng, COUNT_ALL), counted(len(things), "shape"))
    if not things:
        return
    shape = rng.choice([t.shape for t in things] + [rng.choice(shapes.NAMES)])
    yield Turn("count", spoken(rng, COUNT_SOME, names=plural(shape)),
               counted(sum(t.shape == shape for t in things), shape))  # fmt: skip
    colour = rng.choice([t.colour for t in things] + [rng.choice(palette.NAMES)])
    noun = rng.choice(("objects", "shapes", "things"))
    yield Turn("count", spoken(rng, COUNT_SOME, names=f"{colour} {noun}"),
               counted(sum(t.colour == colour for t in things), f"{colour} shape"))  # fmt: skip


def plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def counted(number: int, noun: str) -> str:
    return f"There is 1 {noun}." if number == 1 else f"There are {number} {plural(noun)}."


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
        yield Turn("place", spoken(rng, WHERE, name=name), f"The {name} is {at(thing.place or '')}.")
    clear = all(thing.place for thing in things) and len({t.place for t in things}) == len(things)
    if clear:
        thing = rng.choice(things)
        yield Turn("place", spoken(rng, AT_PLACE, place=at(thing.place or "")),
                   f"There is {article(thing.name)} {at(thing.place or '')}.")  # fmt: skip
        if len(things) <= 4:
            ordered = sorted(things, key=_reading_order)
            said = listed([f"{article(t.name)} {at(t.place or '')}" for t in ordered])
            yield Turn("place", spoken(rng, PLACES), f"I see {said}.")


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
        yield Turn("compare", spoken(rng, SIDE, side=side, **names), f"The {nearer} is further {side}.")
        side = rng.choice(("left", "right"))
        true = (one.x < two.x) == (side == "left")
        said = f"{'Yes' if true else 'No'}, the {first} is {'' if true else 'not '}{side} of the {second}."
        yield Turn("compare", spoken(rng, IS_LEFT, side=side, **names), said)
    if abs(one.y - two.y) > 0.15:
        upper, lower = (first, second) if one.y < two.y else (second, first)
        if rng.random() < 0.5:
            yield Turn("compare", spoken(rng, LEVEL, **names), f"The {upper} is higher.")
        else:
            yield Turn("compare", spoken(rng, LEVEL_LOW, **names), f"The {lower} is lower.")
        side = rng.choice(("above", "below"))
        true = (one.y < two.y) == (side == "above")
        said = f"{'Yes' if true else 'No'}, the {first} is {'' if true else 'not '}{side} the {second}."
        yield Turn("compare", spoken(rng, IS_ABOVE, side=side, **names), said)
    ratio = one.radius / two.radius
    if ratio > 1.35 or ratio < 1 / 1.35:
        larger, smaller = (first, second) if ratio > 1 else (second, first)
        if rng.random() < 0.5:
            yield Turn("compare", spoken(rng, LARGER, **names), f"The {larger} is larger.")
        else:
            yield Turn("compare", spoken(rng, SMALLER, **names), f"The {smaller} is smaller.")
    by_size = sorted(named, key=lambda pair: -pair[1].radius)
    if len(named) == len(scene.things) and by_size[0][1].radius > 1.3 * by_size[1][1].radius:
        name, thing = by_size[0]
        yield Turn("compare", spoken(rng, LARGEST), f"The {name} is the largest.")


# ------------------------------------------------------------------ pages


def about_page(page: Page, rng: random.Random) -> list[Turn]:
    """Return questions about a page of writing."""
    lines = sorted(page.lines, key=lambda line: line.y)
    if len(lines) > 1:
        return [Turn("read all", spoken(rng, READ_ALL), f"I read {', '.join(read_order(page))}.")]
    text = lines[0].text
    number = text.isdigit()
    skill = "number" if number else "word"
    kind, wordings = ("number", NUMBER) if number else ("word", WORD)
    return [
        Turn(skill, spoken(rng, wordings), f"The {kind} is {text}."),
        Turn(skill, spoken(rng, READ), f"It says {text}."),
        Turn(skill, spoken(rng, CAPTION), f"I see the {kind} {text} on {article(page.background)} background."),
        Turn("look", spoken(rng, BACKGROUND), f"The background is {page.background}."),
        Turn("look", spoken(rng, WRITING_COLOUR), f"The text is {page.colour}."),
    ]


def read_order(page: Page) -> list[str]:
    """Return the texts row by row, each row left to right (rows as they were laid out)."""
    return [line.text for line in page.lines]


# ------------------------------------------------------------------ several pictures


def about_several(scenes: list[Scene], rng: random.Random) -> list[Turn]:
    """Return questions about 2 to 4 pictures of one or two shapes each."""
    turns = [Turn("images", spoken(rng, HOW_MANY_IMAGES), f"There are {len(scenes)} images.")]
    nth = rng.randrange(len(scenes))
    scene = scenes[nth]
    if _side_by_side(scene.things):
        turns.append(Turn("images", spoken(rng, NTH, nth=ORDINALS[nth]), caption(scene)))
    turns.append(Turn("images", spoken(rng, NTH_BACKGROUND, nth=ORDINALS[nth]),
                      f"The background of the {ORDINALS[nth]} image is {scene.background}."))  # fmt: skip
    things = [t for s in scenes for t in s.things]
    target = rng.choice(things)
    for name, hits in (
        (target.shape, [any(t.shape == target.shape for t in s.things) for s in scenes]),
        (target.name, [any(t.name == target.name for t in s.things) for s in scenes]),
    ):
        if sum(hits) == 1:
            choice = f"{', '.join(ORDINALS[: len(scenes) - 1])} or {ORDINALS[len(scenes) - 1]}"
            wordings = WHICH_SHAPE if rng.random() < 0.6 else WHICH_SHAPE_OPEN
            question = spoken(rng, wordings, name=article(name), choice=choice)
            turns.append(Turn("images", question, f"The {ORDINALS[hits.index(True)]} image shows {article(name)}."))
    if any(len(s.things) != 1 for s in scenes):
        return turns
    single = [s.things[0] for s in scenes]
    nth = rng.randrange(len(scenes))
    turns.append(Turn("images", spoken(rng, NTH_COLOUR, nth=ORDINALS[nth]),
                      f"The shape in the {ORDINALS[nth]} image is {single[nth].colour}."))  # fmt: skip
    turns.append(Turn("images", spoken(rng, NTH_SHAPE, nth=ORDINALS[nth]),
                      f"The {ORDINALS[nth]} image shows {article(single[nth].shape)}."))  # fmt: skip
    turns.append(Turn("images", spoken(rng, ORDER_COLOURS), f"In order: {', '.join(t.colour for t in single)}."))
    turns.append(Turn("images", spoken(rng, ORDER_SHAPES), f"In order: {', '.join(t.shape for t in single)}."))
    if len(scenes) == 2:
        one, two = single
        for wordings, a, b in (
            (BOTH_COLOUR, one.colour, two.colour),
            (BOTH_SHAPE, article(one.shape), article(two.shape)),
            (BOTH_BACKGROUND, scenes[0].background, scenes[1].background),
        ):
            said = f"Yes, both are {a}." if a == b else f"No, the first is {a} and the second is {b}."
            turns.append(Turn("images", spoken(rng, wordings), said))
    return turns


# ------------------------------------------------------------------ clips

TOWARDS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}


def about_clip(clip: Clip, rng: random.Random) -> list[Turn]:
    """Return questions about a clip: direction, or colours one after another."""
    turns = []
    if clip.direction is not None and clip.thing is not None:
        thing, towards = clip.thing, TOWARDS[clip.direction]
        name = rng.choice((thing.shape, thing.name))
        moves = f"The {thing.shape} moves {towards}."
        turns.append(Turn("direction", spoken(rng, DIRECTION, name=name), moves))
        turns.append(Turn("direction", spoken(rng, DIRECTION_IT), f"It moves {towards}."))
        turns.append(Turn("direction", spoken(rng, CLIP_CAPTION),
                          f"{article(thing.name).capitalize()} moves {towards} on {article(clip.background)} background."))  # fmt: skip
        asked = rng.choice((clip.direction, rng.choice(sorted(TOWARDS))))
        said = "Yes" if asked == clip.direction else "No"
        turns.append(Turn("direction", spoken(rng, DOES_IT, side=TOWARDS[asked], name=thing.shape),
                          f"{said}, it moves {towards}."))  # fmt: skip
        turns.append(Turn("look", spoken(rng, BACKGROUND), f"The background is {clip.background}."))
        return turns
    colours = clip.colours
    if len(colours) > 1:
        early, late = sorted(rng.sample(range(len(colours)), 2))
        pair = [colours[early], colours[late]]
        rng.shuffle(pair)
        names = {"first": pair[0], "second": pair[1]}
        turns.append(Turn("first colour", spoken(rng, FIRST_COLOUR, **names),
                          f"{colours[early].capitalize()} came first."))  # fmt: skip
        turns.append(Turn("first colour", spoken(rng, LAST_COLOUR, **names),
                          f"{colours[late].capitalize()} came later."))  # fmt: skip
    turns.append(Turn("distinct colours", spoken(rng, HOW_MANY_COLOURS),
                      "1 colour is shown." if len(colours) == 1 else f"{len(colours)} colours are shown."))  # fmt: skip
    turns.append(Turn("distinct colours", spoken(rng, COLOURS_IN_ORDER),
                      f"{', then '.join(colours)}.".capitalize()))  # fmt: skip
    return turns

"""The shapes world: captioned pictures of one or two coloured shapes, made from (seed, index), and a verifier of captions.

Captions follow the grammar

    caption  = object | object relation object
    object   = "a" [size] colour shape            "a large red circle"
    relation = "left of" | "right of" | "above" | "below"

Seven pairs of colour and shape (`HELD_OUT`) never occur in the train split and occur in every odd record of the test
split, so binding a colour to a shape can be measured on pairs that were never seen together. The verifier reads an
object's colour, shape and size back from the pixels alone and compares them with a caption.
"""

import dataclasses
import functools
import itertools
import re

import numpy as np
from scipy import ndimage

from vimlab.data.base import DataError, Record, SourceInfo, fingerprint

COLOURS = {"red": (214, 39, 40), "orange": (250, 145, 25), "yellow": (240, 215, 35), "green": (40, 155, 60),
           "cyan": (40, 195, 215), "blue": (40, 75, 205), "purple": (150, 60, 185)}
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
SIZES = {"small": (0.13, 0.15), "large": (0.20, 0.22)}  # half of an object's extent, in image sides
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # direction (x, y) of the first object
PAIRS = tuple(itertools.product(COLOURS, SHAPES))
HELD_OUT = frozenset((("red", "cross"), ("orange", "square"), ("yellow", "triangle"), ("green", "diamond"),
                      ("cyan", "circle"), ("blue", "cross"), ("purple", "square")))
GAP = 0.09  # least free space between two objects, in image sides
_OBJECT = rf"an? (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(rf"{_OBJECT}(?: ({'|'.join(RELATIONS)}) {_OBJECT})?")


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: what it is, and where; `x`, `y` and half extent `half` in image sides. `size` is None where unsaid."""

    size: str | None
    colour: str
    shape: str
    x: float = 0.5
    y: float = 0.5
    half: float = 0.0

    def __str__(self) -> str:
        article = "an" if not self.size and self.colour == "orange" else "a"
        return " ".join(filter(None, (article, self.size, self.colour, self.shape)))


class Shapes:
    """`count` records of a split, uint8[size,size,3] with caption; the label is the first object's pair in `PAIRS`.

    Args:
      split: "train" or "test".
      objects: 1 or 2 in every picture; 0 draws one of the two.
    """

    def __init__(self, split: str, size: int = 32, count: int | None = None, seed: int = 0, objects: int = 0):
        if split not in ("train", "test"):
            raise DataError(f"the shapes world has the splits train and test, not {split!r}")
        if size < 16 or objects not in (0, 1, 2):
            raise DataError(f"shapes are drawn at 16 pixels or more with objects=0, 1 or 2, not size={size}, objects={objects}")
        self._split, self._size, self._seed, self._objects = split, size, seed, objects
        self._count = (50_000 if split == "train" else 2_000) if count is None else count
        name = f"shapes:{split}?size={size}&count={self._count}&seed={seed}&objects={objects}"
        self.info = SourceInfo(name, self._count, tuple(" ".join(pair) for pair in PAIRS), True, fingerprint([name, 1]))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._count:
            raise IndexError(index)
        counter = [0, 0, int(self._split == "test"), index]
        rng = np.random.Generator(np.random.Philox(key=self._seed, counter=counter))
        things, relation = _scene(rng, self._split == "test" and index % 2 == 1, self._objects)
        caption = f" {relation} ".join(str(t) for t in things) if relation else str(things[0])
        image = draw(things, self._size, rng)
        pair = PAIRS.index((things[0].colour, things[0].shape))
        return Record(key=f"{self._split}-{index:07d}", image=image, caption=caption, label=pair)


def is_held_out(caption: str) -> bool:
    """Whether a caption names a pair of colour and shape that the train split lacks."""
    return any((t.colour, t.shape) in HELD_OUT for t in parse(caption)[0])


def parse(caption: str) -> tuple[list[Thing], str | None]:
    """The objects and the relation that a caption states. Raises DataError where it is not of the grammar."""
    match = _CAPTION.fullmatch(caption.strip().lower())
    if not match:
        raise DataError(f"{caption!r} is not a caption of the shapes world, such as 'a red circle left of a large blue square'")
    first, relation, second = match.groups()[:3], match[4], match.groups()[4:]
    return [Thing(*first)] + ([Thing(*second)] if relation else []), relation


def _scene(rng: np.random.Generator, held_out: bool, objects: int) -> tuple[list[Thing], str | None]:
    """Draws objects, sizes and places. Only `rng.random()` is used, whose stream NumPy keeps between versions."""

    def pick(options):
        options = list(options)
        return options[int(rng.random() * len(options))]

    known = [pair for pair in PAIRS if pair not in HELD_OUT]
    pairs = [pick(sorted(HELD_OUT) if held_out else known)]
    number = objects or 1 + int(rng.random() < 0.5)
    if number == 2:
        pairs.append(pick(pair for pair in known if pair != pairs[0]))
        if rng.random() < 0.5:
            pairs.reverse()
    sizes = [pick(SIZES) for _ in pairs]
    halves = [SIZES[s][0] + rng.random() * (SIZES[s][1] - SIZES[s][0]) for s in sizes]
    said = [s if rng.random() < 0.5 else None for s in sizes]
    low, high = np.array(halves) + 0.01, 0.99 - np.array(halves)
    relation = pick(RELATIONS) if number == 2 else None
    if relation is None:
        places = [(low[0] + rng.random() * (high[0] - low[0]), low[0] + rng.random() * (high[0] - low[0]))]
    else:
        # Along the relation's axis: both inside, GAP apart. Across it: never further apart than half of that.
        slack = max(0.98 - 2 * sum(halves) - GAP, 0.0)
        before, between = rng.random() * slack, rng.random()
        along = [low[0] + before, 0.0]
        along[1] = along[0] + sum(halves) + GAP + between * (slack - before)
        across = [low[0] + rng.random() * (high[0] - low[0])]
        reach = 0.5 * (along[1] - along[0])
        least, most = max(low[1], across[0] - reach), min(high[1], across[0] + reach)
        across.append(least + rng.random() * (most - least))
        dx, dy = RELATIONS[relation]
        along = along if dx + dy < 0 else [1 - a for a in along]
        places = list(zip(along, across, strict=True)) if dx else list(zip(across, along, strict=True))
    return [Thing(s, c, f, x, y, h) for s, (c, f), (x, y), h in zip(said, pairs, places, halves, strict=True)], relation


def draw(things: list[Thing], size: int, rng: np.random.Generator) -> np.ndarray:
    """uint8[size,size,3]: the objects on a light grey ground, antialiased; ground and colours vary a little."""
    image = np.full((size, size, 3), 255 * (0.86 + 0.14 * rng.random()))
    for thing in things:
        colour = np.clip(np.array(COLOURS[thing.colour]) + 16 * (np.array([rng.random() for _ in range(3)]) - 0.5), 0, 255)
        cover = coverage(thing.shape, thing.x * size, thing.y * size, thing.half * size, size)[..., None]
        image = image * (1 - cover) + colour * cover
    return np.rint(image).astype(np.uint8)


def coverage(shape: str, x: float, y: float, half: float, size: int, fine: int = 5) -> np.ndarray:
    """The share f64[size,size] of each pixel inside a shape whose middle is (x, y) and half extent `half`, in pixels."""
    steps = (np.arange(size * fine) + 0.5) / fine
    u, v = (steps[None, :] - x) / half, (steps[:, None] - y) / half
    a, b = np.abs(u), np.abs(v)
    inside = {"circle": lambda: u * u + v * v <= 1, "square": lambda: (a <= 0.88) & (b <= 0.88), "diamond": lambda: a + b <= 1,
              "triangle": lambda: (v <= 0.9) & (2 * a <= 1.05 * (v + 1.0)),
              "cross": lambda: ((a <= 0.34) & (b <= 1)) | ((b <= 0.34) & (a <= 1))}[shape]()
    return inside.reshape(size, fine, size, fine).mean((1, 3))


def detect(image: np.ndarray) -> list[Thing]:
    """The objects in a picture uint8[H,W,3] (H = W), read from its pixels alone, the largest first; at most four.

    An object is a connected region that differs from the ground (the border's median). Its colour is the nearest of
    `COLOURS` at its strongest pixels; its shape is that whose drawing, with the region's own area and middle, fits best,
    sharp or blurred; area and shape give the size.
    """
    size = image.shape[0]
    pixels = image.astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    contrast = pixels - np.median(border, 0)
    strength = np.linalg.norm(contrast, axis=-1)
    regions, number = ndimage.label(strength > 60)
    things = []
    for region in sorted(range(1, number + 1), key=lambda r: -(regions == r).sum())[:4]:
        inside = regions == region
        if inside.sum() < 0.01 * size * size:
            continue
        # A few pixels round the region hold the rest of its soft edge; pixels nearer to another object are left out.
        near = ndimage.binary_dilation(inside, iterations=max(2, size // 24)) & ~((regions > 0) & ~inside)
        core = inside & (strength >= np.quantile(strength[inside], 0.5))
        mean = contrast[core].mean(0)
        cover = np.where(near, np.clip((contrast @ mean) / (mean @ mean), 0, 1), 0)
        things.append(_describe(cover, pixels[core].mean(0), size))
    return things


def _describe(cover: np.ndarray, colour: np.ndarray, size: int) -> Thing:
    area, rows, columns = cover.sum(), np.arange(size) + 0.5, np.arange(size) + 0.5
    x, y = (cover.sum(0) @ columns) / area, (cover.sum(1) @ rows) / area
    best = (np.inf, "", 0.0)
    for shape in SHAPES:
        unit_area, unit_centroid = _moments(shape)
        half = float(np.sqrt(area / unit_area))
        drawn = coverage(shape, x, y - unit_centroid * half, half, size)
        for blur in (0.0, 0.5, 0.8, 1.2):
            error = np.square(cover - (ndimage.gaussian_filter(drawn, blur * size / 32) if blur else drawn)).sum() / area
            best = min(best, (error, shape, half / size))
    name = min(COLOURS, key=lambda c: float(np.square(_opponent(np.array(COLOURS[c])) - _opponent(colour)).sum()))
    word = "small" if best[2] < (SIZES["small"][1] + SIZES["large"][0]) / 2 else "large"
    return Thing(word, name, best[1], float(x / size), float(y / size), float(best[2]))


@functools.cache
def _moments(shape: str) -> tuple[float, float]:
    """Area of a shape of half extent 1, and how far its centroid lies below its middle (a triangle's does)."""
    cover = coverage(shape, 32.0, 32.0, 24.0, 64)
    return float(cover.sum() / 24**2), float((cover.sum(1) @ (np.arange(64) + 0.5) / cover.sum() - 32) / 24)


def _opponent(rgb: np.ndarray) -> np.ndarray:
    """Colour with lightness weighed less than hue, so that shading and blur do not change its name."""
    r, g, b = np.asarray(rgb, np.float64)
    return np.array([0.4 * (r + g + b) / 3, r - g, (r + g) / 2 - b])


def verify(image: np.ndarray, caption: str) -> dict[str, bool]:
    """Which of a caption's statements hold in a picture, read from its pixels uint8[H,W,3].

    Returns:
      "count"; "colour 1", "shape 1" and, where the caption states it, "size 1"; the same with 2, and "relation", for
      captions with two objects. Objects are matched to the caption in the way that makes most of it true.

    Raises:
      DataError: the caption is not of the grammar.
    """
    wanted, relation = parse(caption)
    found = detect(image)
    count = len(found) == len(wanted)
    found = found + [None] * (len(wanted) - len(found))
    candidates = [_compare(wanted, chosen, relation) for chosen in itertools.permutations(found, len(wanted))]
    return {"count": count} | max(candidates, key=lambda statements: sum(statements.values()))


def _compare(wanted: list[Thing], found: tuple[Thing | None, ...], relation: str | None) -> dict[str, bool]:
    statements = {}
    for number, (want, have) in enumerate(zip(wanted, found, strict=True), 1):
        statements[f"colour {number}"] = have is not None and have.colour == want.colour
        statements[f"shape {number}"] = have is not None and have.shape == want.shape
        if want.size:
            statements[f"size {number}"] = have is not None and have.size == want.size
    if relation:
        statements["relation"] = None not in found and _related(*found, relation)
    return statements


def _related(first: Thing, second: Thing, relation: str) -> bool:
    dx, dy = RELATIONS[relation]
    along = (first.x - second.x) * dx + (first.y - second.y) * dy
    across = abs((first.x - second.x) * dy) + abs((first.y - second.y) * dx)
    return bool(along > across)

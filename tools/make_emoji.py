"""Builds the embedded data set: captioned emoji at 64 pixels on white, 1,434 to train on and 200 to test on.

    python tools/make_emoji.py ../shared/data/emoji [--out vimlab/data/embedded/emoji]

The source is a folder with a WebDataset tar of Noto Emoji glyphs (KEY.png, KEY.txt). The 200 keys with the smallest
SHA-256 are the test split, so the split depends on nothing but the keys.
"""

import argparse
import hashlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vimlab.data.base import Subset  # noqa: E402
from vimlab.data.importer import write_dataset  # noqa: E402
from vimlab.data.sources import open_source  # noqa: E402

TEST = 200
ATTRIBUTION = """# Attribution

The images are colour glyphs of **Noto Emoji** (Copyright Google LLC), https://github.com/googlefonts/noto-emoji, licensed
under the Apache License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0). They were changed: composited on
white, resized to 64 x 64 pixels by area and stored as lossless WebP.

The captions are the English short names of the Unicode Common Locale Data Repository (**CLDR**), Copyright Unicode, Inc.,
licensed under the Unicode License v3 (https://www.unicode.org/license.txt).

`tools/make_emoji.py` made this folder.
"""


def main(argv: list[str]) -> int:
    """Writes the folder and prints its hash."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src")
    parser.add_argument("--out", default=str(ROOT / "vimlab/data/embedded/emoji"))
    args = parser.parse_args(argv)
    source = open_source(args.src)
    ranks = sorted(range(len(source)), key=lambda i: hashlib.sha256(source[i]["key"].encode()).digest())
    splits = {"train": Subset(source, sorted(ranks[TEST:]), "train"), "test": Subset(source, sorted(ranks[:TEST]), "test")}
    manifest = write_dataset(splits, args.out, origin="Noto Emoji, CLDR short names", size=64, form="webp")
    pathlib.Path(args.out, "ATTRIBUTION.md").write_text(ATTRIBUTION)
    print({split: entry["count"] for split, entry in manifest["splits"].items()}, "sha256", manifest["sha256"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A folder of images: the class is the first sub-folder's name, the caption a .txt file beside the image."""

import os
import pathlib

from vimlab.data.base import IMAGE_SUFFIXES, DataError, Record, SourceInfo, fingerprint


class Folder:
    """Images under `root` in the order of their paths. A class for each where all lie in sub-folders, else none.

    Args:
      classes: the class table where several splits share one; by default the sub-folders that hold images.

    Raises:
      DataError: there is no image.
    """

    def __init__(self, root: pathlib.Path, classes: tuple[str, ...] | None = None):
        self._root = str(root)
        images, captioned = [], set()
        for folder, folders, files in os.walk(root, followlinks=True):
            folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
            within = os.path.relpath(folder, root)
            for file in files:
                stem, suffix = os.path.splitext(os.path.join("" if within == "." else within, file))
                if file.startswith("."):
                    continue
                if suffix.lower() in IMAGE_SUFFIXES:
                    images.append(stem + suffix)
                elif suffix == ".txt":
                    captioned.add(stem)
        if not images:
            raise DataError(f"folder {str(root)!r} holds no image; expected files such as {sorted(IMAGE_SUFFIXES)[:4]}")
        self._images = sorted(images)
        self._captioned = {stem for stem in (os.path.splitext(i)[0] for i in images) if stem in captioned}
        tops = [image.partition(os.sep)[::2] for image in self._images]
        classes = (classes or tuple(sorted({top for top, _ in tops}))) if all(rest for _, rest in tops) else None
        self._labels = None if classes is None else {name: i for i, name in enumerate(classes)}
        stamp = fingerprint([classes] + [(image, os.path.getsize(os.path.join(root, image))) for image in self._images])
        self.info = SourceInfo(root.resolve().name, len(images), classes, bool(self._captioned), stamp)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = self._images[index]
        stem = os.path.splitext(image)[0]
        record = Record(key=image, image=pathlib.Path(self._root, image).read_bytes())
        if self._labels is not None:
            record["label"] = self._labels[image.partition(os.sep)[0]]
        if stem in self._captioned:
            record["caption"] = pathlib.Path(self._root, stem + ".txt").read_text("utf-8", "replace").strip()
        return record

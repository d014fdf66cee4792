"""The user's project as one archive, as it is now: what git tracks and what is new, without what git ignores."""

import pathlib
import subprocess
import tarfile

from vimlab.launch.shell import LaunchError


def listing(folder: pathlib.Path) -> list[str]:
    """Paths below the folder that belong to the project. Raises LaunchError where the folder is in no git repository."""
    done = subprocess.run(["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True)
    if done.returncode:
        raise LaunchError(f"--source {folder} is in no git repository, so what belongs to the project is not known: {done.stderr.strip()}")
    # Tracked files that were deleted are listed, but are no more.
    return sorted(name for name in set(done.stdout.split("\0")) if name and (folder / name).is_file())


def pack(folder: pathlib.Path, archive: pathlib.Path) -> None:
    """Writes the archive, a compressed tar. Raises LaunchError as `listing`."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        for name in listing(folder):
            tar.add(folder / name, arcname=name)

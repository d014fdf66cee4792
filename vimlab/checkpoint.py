"""Checkpoints: saved in the background, committed by their checksums, restored onto any mesh. Only this file knows Orbax.

A step is a folder `{directory}/{step}`:

    state/          the arrays, in Orbax's format, under flat names such as `params/tokenizer/encoder/w`
    arrays.json     {name: [dtype, shape]} of those arrays
    meta.json       what the caller wants to keep: config, class table, versions, data position
    checksums.json  written last; a step without it never counts

Orbax finds neither a flipped byte nor a truncated latest step; the checksums do. The tree's structure is not stored:
names and today's abstract state give it back, so optimizer states may be any pytrees.
"""

import concurrent.futures
import dataclasses
import json
import pathlib
import re
import shutil
import time
from typing import Any

import jax
import numpy as np
from absl import logging

from vimlab.checksums import SEAL, damage, read_seal, seal, write_file
from vimlab.config import ConfigError, Duration, UserError
from vimlab.parallel import exchange


class CheckpointError(UserError):
    """A checkpoint that cannot be saved, found or used; the message is one sentence that says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to keep.

    Attributes:
      every: between two saves; the last step is saved in any case.
      keep: newest checkpoints that stay.
      keep_every: checkpoints at multiples of this stay for good; it should be a multiple of `every`.
    """

    every: Duration = Duration(1000)
    keep: int = 3
    keep_every: Duration | None = None

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"keep is {self.keep}, but at least 1 checkpoint must stay")


class Checkpointer:
    """Saves and restores the steps of one directory. Every process of a run calls every method, in the same order."""

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 3, keep_every_steps: int | None = None):
        self.directory = pathlib.Path(directory).absolute()
        self._keep, self._keep_every = keep, keep_every_steps
        self._writer = None
        self._background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[int, concurrent.futures.Future] | None = None
        self._saved: set[int] = set()
        self._bad: set[int] = set()

    def save(self, step: int, state: Any, meta: dict[str, Any], *, wait: bool = False) -> None:
        """Copies the state to the host and writes it in the background; the state may be donated on return.

        A step that this object has saved or restored already is not saved again. A folder that stands in the way, which is
        then damaged or from another run, is renamed and kept.

        Args:
          step: a whole number, not negative.
          state: pytree of jax.Arrays, on any mesh.
          meta: JSON values.
          wait: return only when the checkpoint is committed.

        Raises:
          CheckpointError: the previous save failed in the background, or this one cannot begin.
        """
        import orbax.checkpoint as ocp

        self.wait()
        if step in self._saved:
            return
        arrays, folder = named(state), self.directory / str(step)
        if self._writer is None:
            # Trained weights hardly compress; trying costs five times the CPU time.
            self._writer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        try:
            exchange.first(lambda: self._begin(folder, arrays, meta))
            if "cpu" in {device.platform for x in arrays.values() for device in x.devices()}:
                # On CPU a "host copy" is a view of the device's buffer, which the next step may overwrite.
                arrays = jax.device_put(arrays, {name: x.sharding for name, x in arrays.items()}, may_alias=False)
            self._writer.save(folder / "state", args=ocp.args.PyTreeSave(arrays))
        except Exception as error:
            raise CheckpointError(f"step {step} could not be saved in {self.directory}: {_one_line(error)}") from error
        self._pending = step, self._background.submit(self._commit, step)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when no save is under way. Raises CheckpointError where one failed, on every process."""
        if self._pending is None:
            return
        step, future = self._pending
        error = future.exception()
        self._pending = None
        if exchange.on_any(error is not None, f"the end of saving step {step}"):
            cause = "another process could not write its part" if error is None else _one_line(error)
            raise CheckpointError(f"step {step} could not be saved in {self.directory}: {cause}") from error
        self._saved.add(step)

    def close(self) -> None:
        """Waits for the last save and ends the background thread. Raises CheckpointError as `wait` does."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What an error has ended on one of several processes, others cannot wait for; a save under way counts only if it still ends.
        if kind is None or exchange.count() == 1:
            self.close()

    def steps(self) -> list[int]:
        """The committed steps, ascending; whether their files are still whole, `find` says."""
        return [step for step in self._folders() if (self.directory / str(step) / SEAL).is_file()]

    def latest(self) -> int | None:
        """The newest committed step."""
        return max(self.steps(), default=None)

    def read_meta(self, step: int) -> dict[str, Any]:
        """The `meta` that was saved with a step."""
        return json.loads((self.directory / str(step) / "meta.json").read_bytes())

    def arrays(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Names, shapes and dtypes of a step's arrays, without reading them."""
        table = json.loads((self.directory / str(step) / "arrays.json").read_bytes())
        return {name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype)) for name, (dtype, shape) in table.items()}

    def find(self, step: int | None = None) -> int | None:
        """The newest step whose checksums hold, or `step` itself if they do; None where nothing was ever committed.

        A newer step that is damaged or half-saved is named in a warning, skipped and left as it is.

        Raises:
          CheckpointError: `step` does not exist or is damaged, or there are checkpoints and all are damaged.
        """
        return exchange.first(lambda: self._newest_good() if step is None else self._good(step))

    def load(self, step: int, abstract: Any, *, subset: bool = False) -> Any:
        """Reads a step's arrays, without looking at checksums.

        Args:
          abstract: pytree of jax.ShapeDtypeStruct whose names (`named`) are those saved, with the shardings wanted now; a
            leaf without a sharding comes back as a NumPy array.
          subset: the checkpoint may hold more than is asked for, such as optimizer states around `{"params": …}`.

        Returns:
          A pytree like `abstract`, bitwise what was saved.

        Raises:
          CheckpointError: names, shapes or dtypes differ.
        """
        import orbax.checkpoint as ocp

        wanted, folder = named(abstract), self.directory / str(step)
        check_fit(f"checkpoint {folder}", self.arrays(step), wanted, subset)
        args = {
            name: ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype)
            if x.sharding is None
            else ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
            for name, x in wanted.items()
        }
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            item = ocp.args.PyTreeRestore(wanted, restore_args=args, partial_restore=True)
            found = reader.restore(folder / "state", args=item)
        return jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in wanted])

    def restore(self, abstract_state: Any, step: int | None = None, *, subset: bool = False) -> tuple[int, Any, dict] | None:
        """`find`, then `load`: (step, state, meta), or None where nothing was ever committed."""
        self.wait()
        step = self.find(step)
        if step is None:
            return None
        state = self.load(step, abstract_state, subset=subset)
        self._saved.add(step)
        return step, state, self.read_meta(step)

    def _folders(self) -> list[int]:
        entries = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(int(p.name) for p in entries if re.fullmatch(r"0|[1-9]\d*", p.name) and p.is_dir())

    def _good(self, step: int) -> int:
        steps = self.steps()
        if step not in steps:
            raise CheckpointError(f"{self.directory} has no checkpoint of step {step}; it has {steps or 'none'}")
        if reason := damage(self.directory / str(step)):
            raise CheckpointError(f"checkpoint {self.directory / str(step)} is damaged: {reason}; choose another of {steps}")
        return step

    def _newest_good(self) -> int | None:
        committed, reasons = self.steps(), {}
        for step in reversed(self._folders()):
            reason = damage(self.directory / str(step))
            if reason is None:
                return step
            logging.warning("CHECKPOINT %s IS SKIPPED: %s. It is left as it is; the next older one is tried.",
                            self.directory / str(step), reason)
            self._bad.add(step)
            reasons[step] = reason
        if committed:
            raise CheckpointError(f"every checkpoint in {self.directory} is damaged ({reasons}); bring one back from a "
                                  "copy, or move the folder away to start over")
        return None

    def _begin(self, folder: pathlib.Path, arrays: dict[str, jax.Array], meta: dict[str, Any]) -> None:
        if folder.exists():
            reason = damage(folder)
            kind, number = "corrupt" if reason else "replaced", 1
            while (aside := folder.with_name(f"{folder.name}.{kind}-{number}")).exists():
                number += 1
            folder.rename(aside)
            self._bad.discard(int(folder.name))
            logging.warning("CHECKPOINT %s stood where a new one is saved (%s); it is kept as %s.", folder,
                            reason or "it is whole, and from another run or an abandoned continuation", aside)
        table = {name: [str(x.dtype), x.shape] for name, x in arrays.items()}
        texts = {"arrays.json": json.dumps(table, indent=1), "meta.json": json.dumps(meta, indent=1)}
        folder.mkdir(parents=True)
        for name, text in texts.items():
            write_file(folder / name, text.encode())

    def _commit(self, step: int) -> None:
        """In the background: when Orbax has finished on all processes, the first one seals the step and prunes."""
        self._writer.wait_until_finished()
        if jax.process_index() == 0:
            milestone = self._keep_every is not None and step % self._keep_every == 0
            seal(self.directory / str(step), step=step, time=time.time(), milestone=milestone)
            self._prune(step)

    def _prune(self, newest: int) -> None:
        """Deletes committed, whole steps older than the newest `keep`, milestones excepted; later steps are not its concern."""
        for leftover in self.directory.glob("*.deleting"):
            shutil.rmtree(leftover)
        older = [step for step in self.steps() if step < newest and step not in self._bad]
        for step in older[: max(len(older) - self._keep + 1, 0)]:
            folder = self.directory / str(step)
            if reason := damage(folder):
                logging.warning("CHECKPOINT %s IS DAMAGED: %s. It is left as it is, not deleted as too old.", folder, reason)
                self._bad.add(step)
            elif not read_seal(folder)["milestone"]:
                # Renamed first, so that a half-deleted step never looks like a damaged one.
                shutil.rmtree(folder.rename(folder.with_name(f"{step}.deleting")))


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree under names such as `opt_state/tokenizer/0/mu/w`, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise CheckpointError("two arrays of the state have the same name; keys of its dictionaries must not contain '/'")
    return flat


def check_fit(what: str, stored: dict[str, Any], wanted: dict[str, Any], subset: bool = False) -> None:
    """Raises CheckpointError, naming `what` and the first differences, unless names, shapes and dtypes agree."""
    show = lambda x: f"{x.dtype}{list(x.shape)}"
    differences = [f"{n} is not in it" for n in wanted if n not in stored]
    differences += [
        f"{n} is {show(stored[n])} in it but {show(x)} here"
        for n, x in wanted.items()
        if n in stored and (stored[n].shape, stored[n].dtype) != (x.shape, x.dtype)
    ]
    differences += [] if subset else [f"{n} is in it but not here" for n in stored if n not in wanted]
    if differences:
        more = f" and {len(differences) - 3} more differences" if len(differences) > 3 else ""
        raise CheckpointError(f"{what} is of another model: {', '.join(differences[:3])}{more}; "
                              "use the config that it was saved with")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

"""`vimlab doctor`: whether this machine can train, line by line; exit code 1 if anything needed is missing."""

import argparse
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from vimlab import config as configs
from vimlab.config import ConfigError
from vimlab.parallel import cluster

NEEDED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "ml-collections", "clu", "numpy",
          "absl-py", "pillow", "tensorboardX")
OPTIONAL = {
    "opencv-python-headless": "decodes images faster (extra: fastdata)",
    "sentencepiece": "text vocabularies (extra: text)",
    "gcsfs": "workdirs in buckets, gs:// (extra: gcs)",
    "libtpu": "TPUs, and plans for TPUs (extra: tpu)",
}


def main(argv: Sequence[str]) -> int:
    """The `doctor` command."""
    parser = argparse.ArgumentParser(prog="vimlab doctor", description="Check this machine.")
    parser.add_argument("--workdir", default=".", help="folder, or gs:// folder of a bucket, to test writing in")
    pod = parser.add_argument_group("the processes of a run", "Started like the run itself, as with `vimlab launch … -- doctor --pod --workdir W`.")
    pod.add_argument("--pod", action="store_true", help="check what they need together: each other, all devices, the workdir, a data batch on each host")
    pod.add_argument("--config", help="take the data of the batch from this config (default: the emoji)")
    pod.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="of every check, and of their coming together unless --init-timeout says otherwise (default 60)")
    cluster.add_flags(parser)
    usual = parser.get_default("init_timeout")
    parser.set_defaults(init_timeout=None)
    argv, overrides = configs.split_overrides(argv)
    args = parser.parse_args(argv)
    if args.init_timeout is None:
        args.init_timeout = args.timeout if args.pod else usual
    if args.pod:
        from vimlab.doctor_pod import check_pod

        return check_pod(args, overrides)
    if overrides or args.config:
        raise ConfigError("--config is for the data batch of --pod; add --pod")
    if importlib.util.find_spec("jax") is None or cluster.find(args) is None:
        return _examine(args)
    from vimlab.parallel import multihost

    with multihost.joined(args):
        return _examine(args)


def _examine(args: argparse.Namespace) -> int:
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", python),
        ("packages", packages),
        ("devices", devices),
        ("arithmetic", arithmetic),
        ("decoding", decoding),
        ("workdir", lambda: writing(args.workdir)),
        ("memory", memory),
    ]
    failed = 0
    for name, check in checks:
        try:
            result = check()
        except Exception as error:  # Whatever is broken, the other checks still run.
            failed += 1
            result = f"FAILED: {' '.join(str(error).split())}"
        print("\n".join(f"{name if i == 0 else '':11}{line}" for i, line in enumerate(result.splitlines())))
    print("all is well" if not failed else f"{failed} of {len(checks)} checks failed")
    return 1 if failed else 0


def python() -> str:
    return f"{platform.python_version()} on {platform.platform()}"


def packages() -> str:
    lines, missing = [], []
    for name in NEEDED:
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise RuntimeError(f"{', '.join(missing)} not installed; reinstall vimlab with pip install -e .")
    text = ", ".join(lines)
    for name, what in OPTIONAL.items():
        try:
            text += f"\n{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            text += f"\n{name} not installed: {what}"
    return text


def devices() -> str:
    import jax

    kinds = {d.device_kind for d in jax.devices()}
    return f"{jax.device_count()} x {', '.join(sorted(kinds))} ({jax.default_backend()}), {os.cpu_count()} CPU cores"


def arithmetic() -> str:
    import jax
    import jax.numpy as jnp
    import numpy as np

    n = 2048
    x = np.random.default_rng(0).standard_normal((n, n), np.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST))
    expected = x @ x
    x = jnp.asarray(x)
    error = float(np.abs(np.asarray(product(x)) - expected).max() / np.abs(expected).max())
    if not error < 1e-2:
        raise RuntimeError(f"a matrix product is wrong by {error:.1%}")
    start, times = time.perf_counter(), []
    while time.perf_counter() - start < 0.5:
        then = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - then)
    return f"{2 * n**3 / min(times) / 1e12:.3g} TFLOP/s in f32 products of {n} x {n}"


def decoding() -> str:
    import numpy as np

    from vimlab.data.images import decode, encode

    y, x = np.mgrid[:192, :256]
    image = np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)
    for form in ("png", "jpeg"):
        data = encode(image, form)
        error = int(np.abs(decode(data).astype(int) - image).max())
        if error > (0 if form == "png" else 32):
            raise RuntimeError(f"a {form} picture came back wrong by {error} of 255")
    start = time.perf_counter()
    for _ in range(20):
        decode(data)
    backend = "OpenCV" if importlib.util.find_spec("cv2") else "Pillow"
    return f"PNG and JPEG by {backend}, {20 / (time.perf_counter() - start):.0f} JPEGs of 256 x 192 a second on one core"


def writing(workdir: str) -> str:
    from vimlab import paths

    folder = paths.place(workdir)
    paths.check(folder)
    if paths.is_bucket(folder):
        return writing_to_bucket(folder)
    existing = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
    with tempfile.TemporaryDirectory(dir=existing) as temporary:
        file = pathlib.Path(temporary) / "test"
        data = os.urandom(1 << 22)
        file.write_bytes(data)
        os.replace(file, file.with_suffix(".renamed"))
        if file.with_suffix(".renamed").read_bytes() != data:
            raise RuntimeError(f"what was written in {existing} reads back differently")
    return f"{existing} can be written; {shutil.disk_usage(existing).free / 1e9:.0f} GB free"


def writing_to_bucket(folder) -> str:
    """By both ways that a run takes: the path layer's, and TensorStore's, which has the arrays and credentials of its own."""
    import tensorstore

    from vimlab import paths

    name, data = f"vimlab-doctor-{os.getpid()}", os.urandom(1 << 22)
    start = time.perf_counter()
    try:
        paths.write_whole(folder / name, data)
        if (folder / name).read_bytes() != data:
            raise RuntimeError(f"what was written in {folder} reads back differently")
        seconds = time.perf_counter() - start
        store = tensorstore.KvStore.open(f"{folder}/").result(timeout=60)
        store.write(name, data[::-1]).result(timeout=60)
        if (folder / name).read_bytes() != data[::-1]:
            raise RuntimeError(f"what TensorStore wrote in {folder} reads back differently")
    finally:
        (folder / name).unlink(missing_ok=True)
    return f"{folder} can be written; 4 MB there and back in {seconds:.2f} s"


def memory() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    huge = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    text = f"{pages * size / 1e9:.0f} GB"
    if huge.exists() and "[never]" in huge.read_text():
        text += "; transparent huge pages are off, which slows training on CPUs"
    return text


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["doctor", *sys.argv[1:]])

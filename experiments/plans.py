"""Plans of every shipped config on the papers' topologies and on what can be rented: does it fit, and how long does it take?

    python experiments/plans.py [--only PATTERN] [--again] [--full]

Each plan is an ordinary `vimlab plan` command, printed before it runs; needs the extra `tpu`, and no TPU. Results go to
experiments/plans/NAME.json, one for each plan, and to the table experiments/plans/README.md. A plan that is there is not made
again, unless `--again` is given.
"""

import argparse
import fnmatch
import importlib.util
import json
import pathlib
import shlex
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "plans"
LPIPS = "--config.loss.perceptual.weights=vgg16-397923af.pth,vgg.pth"  # The paper's loss has it; a plan reads no weights.
IMAGENET = "configs/vitvq_small_imagenet256.py"
# name: (what the plan is of, arguments of `vimlab plan`). The papers' own layouts, each with a topology that can be rented; decoding.
PLANS = {
    "vitvq_ss_v4_128": ("ViT-VQGAN SS, the paper's 128 TPU v4", f"--config {IMAGENET} --topology v4:4x4x8 {LPIPS}"),
    "vitvq_bb_v4_128": ("ViT-VQGAN BB, the paper's 128 TPU v4", f"--config {IMAGENET}:pair=bb --topology v4:4x4x8 {LPIPS}"),
    "vitvq_sl_v4_128": ("ViT-VQGAN SL, the paper's 128 TPU v4", f"--config {IMAGENET}:pair=sl --topology v4:4x4x8 {LPIPS}"),
    "vitvq_ss_v5e_64": ("ViT-VQGAN SS", f"--config {IMAGENET} --topology v5e:8x8 {LPIPS}"),
    "vitvq_bb_v5e_64": ("ViT-VQGAN BB", f"--config {IMAGENET}:pair=bb --topology v5e:8x8 {LPIPS}"),
    "vitvq_sl_v5e_128": ("ViT-VQGAN SL", f"--config {IMAGENET}:pair=sl --topology v5e:8x16 --mesh fsdp=8 {LPIPS}"),
    "vim_base_v4_128": ("VIM-Base", "--config configs/vim_base_imagenet256.py --topology v4:4x4x8"),
    "vim_base_v5e_256": ("VIM-Base", "--config configs/vim_base_imagenet256.py --topology v5e:16x16"),
    "vim_large_v4_128": ("VIM-Large, data-parallel", "--config configs/vim_large_imagenet256.py --topology v4:4x4x8"),
    "vim_large_v4_128_fsdp": ("VIM-Large", "--config configs/vim_large_imagenet256.py --topology v4:4x4x8 --mesh fsdp=8"),
    "vim_large_v5e_256": ("VIM-Large", "--config configs/vim_large_imagenet256.py --topology v5e:16x16 --mesh fsdp=16"),
    "parti_350m_v4_256": ("Parti-350M, data-parallel as in the paper", "--config configs/parti_350m.py --topology v4:4x8x8"),
    "parti_350m_v5e_256": ("Parti-350M", "--config configs/parti_350m.py --topology v5e:16x16 --config.accumulate=2"),
    "parti_750m_v4_256": ("Parti-750M, data-parallel as in the paper", "--config configs/parti_750m.py --topology v4:4x8x8"),
    "parti_750m_v5e_256": ("Parti-750M", "--config configs/parti_750m.py --topology v5e:16x16 --config.accumulate=8"),
    "parti_3b_v4_512": ("Parti-3B, the paper's 4-way in-layer x 128-way data", "--config configs/parti_3b.py --topology v4:8x8x8"),
    "parti_3b_v5e_256": ("Parti-3B", "--config configs/parti_3b.py --topology v5e:16x16 --config.accumulate=16"),
    "parti_20b_v4_1024": ("Parti-20B, the paper's 1024 TPU v4", "--config configs/parti_20b.py --topology v4:8x8x16"),
    "parti_20b_v4_512": ("Parti-20B", "--config configs/parti_20b.py --topology v4:8x8x8"),
    "vim_base_v5e_16_decode": ("VIM-Base", "--config configs/vim_base_imagenet256.py --topology v5e:4x4 --sample"),
    "parti_3b_v5e_16_decode": ("Parti-3B", "--config configs/parti_3b.py --topology v5e:4x4 --mesh tensor=4 --sample"),
    "parti_20b_v4_64_decode": ("Parti-20B", "--config configs/parti_20b.py --topology v4:4x4x4 --mesh tensor=8 --sample"),
}
LEGEND = """# Plans

Made by `python experiments/plans.py`; each row is one `vimlab plan` command, kept whole in `NAME.json`. Memory is what the compiler
assigns on one chip, with what is held but not read in a step and without the program's own code (tens to a few hundred MiB), of
what it leaves to programs; never measured on a chip. Times are what the roofline allows, which no run reaches; hours are of the
whole run at 40% of the chips' peak, or at the roofline where that takes longer. Decoding is of 1,024 tokens, guided where the model
is trained for it, and of their pixels; 8 images for each copy of the model. The compiler was left to itself once every buffer had its place.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="plans to make, by a pattern such as 'parti_*'")
    parser.add_argument("--again", action="store_true", help="make plans again that are there")
    parser.add_argument("--full", action="store_true", help="compile to machine code too, as `vimlab plan --full` does")
    args = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("these plans are compiled, which needs libtpu: `pip install \"vimlab[tpu]\"`")
    RESULTS.mkdir(exist_ok=True)
    for name, (_, arguments) in PLANS.items():
        file = RESULTS / f"{name}.json"
        if fnmatch.fnmatch(name, args.only) and (args.again or not file.exists()):
            command = ["plan", *shlex.split(arguments), "--json", str(file.relative_to(HERE.parent)), *(["--full"] if args.full else [])]
            print("vimlab " + shlex.join(command), flush=True)
            subprocess.run([sys.executable, "-m", "vimlab", *command], cwd=HERE.parent, check=False)
            file.write_text(file.read_text().replace(str(pathlib.Path.home()), "~"))
    (RESULTS / "README.md").write_text("\n".join((LEGEND, training(), "## Decoding\n", decoding(), layouts())))


def training() -> str:
    """One row for each plan of training that was made."""
    rows = [["plan", "topology", "mesh", "accumulate", "remat", "needs GiB", "of", "roofline s", "bound by", "MFU at most", "hours", "compiled s"]]
    for name, plan in made().items():
        if "run" in plan:
            step, config = plan["step"], plan["config"]
            roofline = step["roofline"]
            hours = max(next(row["hours"] for row in plan["run"]["at"] if row["mfu"] == 0.4), plan["run"]["steps"] * roofline["seconds"] / 3600)
            rows.append([
                *where(name, plan), str(config["accumulate"]), config["model"]["remat"], *memory(plan), f"{roofline['seconds']:.3g}",
                roofline["bound"], f"{step['roofline_mfu']:.0%}", f"{hours:,.0f}", f"{plan['compile']['seconds']:.0f}",
            ])  # fmt: skip
    return table(rows)


def decoding() -> str:
    """One row for each plan of decoding that was made."""
    rows = [["plan", "topology", "mesh", "at a time", "needs GiB", "of", "roofline s", "bound by", "compiled s"]]
    for name, plan in made().items():
        if "run" not in plan:
            roofline = plan["step"]["roofline"]
            images = plan["what"].removeprefix("decoding of ")
            rows.append([*where(name, plan), images, *memory(plan), f"{roofline['seconds']:.3g}", roofline["bound"], f"{plan['compile']['seconds']:.0f}"])
    return table(rows)


def where(name: str, plan: dict) -> list[str]:
    """Cells: the plan, its topology, its mesh."""
    return [f"[{PLANS[name][0]}]({name}.json)", plan["topology"]["name"], ", ".join(f"{axis}={n}" for axis, n in plan["mesh"].items() if n > 1)]


def memory(plan: dict) -> list[str]:
    """Cells: what a chip needs, and has."""
    found = plan["memory"]
    return [f"{total(found):.2f}" if found.get("compiled") else "does not fit", f"{found['budget'] / 2**30:.2f}"]


def table(rows: list[list[str]]) -> str:
    """Markdown, the first row its head."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])) + "\n"


def layouts() -> str:
    """A sentence on each layout of the papers, and the versions."""
    lines = ["## The papers' own layouts", ""]
    for name, plan in made().items():
        if "paper" in PLANS[name][0]:
            found = plan["memory"]
            verdict = f"does not fit: {found.get('refusal', '')}"
            if found["fits"]:
                verdict = f"fits: {total(found):.1f} of {found['budget'] / 2**30:.2f} GiB a chip"
            lines.append(f"* {PLANS[name][0]}: {verdict}")
    versions = sorted({", ".join(f"{k} {v}" for k, v in plan["versions"].items()) for plan in made().values()})
    return "\n".join([*lines, "", "Made with " + "; ".join(versions) + "."]) + "\n"


def total(found: dict) -> float:
    """GiB that a chip holds: what the compiler gives a place, and what is held but not read in a step."""
    return (found["compiled"]["total"] + found["idle"]) / 2**30


def made() -> dict[str, dict]:
    """The plans that are there."""
    files = {name: RESULTS / f"{name}.json" for name in PLANS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


if __name__ == "__main__":
    main()

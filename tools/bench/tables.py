"""What the benchmarks print: the environment, each cell, and a summary of all, whoever wins."""


def print_environment(found: dict) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    print(
        f"{found['cpu']}, {found['threads']} thread(s); {versions}, {found['dtype']}, {found['allocator']}; "
        f"idle {found['idle_before']:.0%}, load {found['load_before']:.1f}"
    )
    if found["idle_before"] < 0.85:
        print("warning: the machine is busy; wall-clock figures mean little now (--core N judges by CPU time)")


def print_cell(name: str, cell: dict) -> None:
    print(f"\n{name}: {cell['what']}")
    for line in compared(cell):
        print(f"  outputs: {line}")
    for variant, median in cell["median_ms"].items():
        label = "vimlab" if variant == "jax" else f"{cell['peers'][variant].replace('jax', 'vimlab')} {variant}"
        ratio = "" if variant == "jax" else "   ratio {:.2f} [{:.2f}, {:.2f}]".format(*cell["ratios"][variant])
        timed, meant = cell["extrapolated"].get(variant, (1, 1))
        note = f"   timed on {timed} of {meant} positions, all alike, and extrapolated" if meant > timed else ""
        print(
            f"  {label:<15} median {median:9.1f} ms   min {cell['min_ms'][variant]:9.1f}   CPU {cell['median_cpu_ms'][variant]:9.1f}"
            f"   first {cell['first_seconds'][variant]:5.1f} s{ratio}{note}"
        )
    print(f"  {cell['rounds']} rounds, {cell['clock']} time; others used {cell['others_share']:.0%} of the machine", flush=True)


def compared(cell: dict) -> list[str]:
    """What the comparison of outputs has found, in words."""
    ids = {k: v for k, v in cell["differences"].items() if k.endswith("ids")}
    rest = {k: v for k, v in cell["differences"].items() if k not in ids}
    lines = [f"{k} agree to {1 - v:.2%}" for k, v in ids.items()]
    if rest:
        worst = max(rest, key=rest.get)
        lines.append(f"largest relative L2 difference {rest[worst]:.1e} ({worst})")
    lines += [f"{peer} computes something of the same shapes, not the same" for peer in cell["apart"]]
    if not cell["equal"]:
        lines.append("NOT EQUAL, the times below compare different things")
    return lines


def print_summary(report: dict) -> None:
    after = report["environment"]
    print("\n| cell | vimlab | peer | ratio | target | |\n| --- | --- | --- | --- | --- | --- |")
    for cell in report["cells"].values():
        for peer, target in aims(cell).items():
            ratio, low, high = cell["ratios"][peer]
            verdict = "" if target is None else "reached" if ratio >= target else "missed"
            verdict = verdict if cell["equal"] or peer in cell["apart"] else "unequal outputs"
            print(
                f"| {cell['what']} | {cell['median_ms']['jax']:.1f} ms | {cell['median_ms'][peer]:.1f} ms ({peer}) | "
                f"{ratio:.2f} [{low:.2f}, {high:.2f}] | {target or ''} | {verdict} |"
            )
    print(f"\n{after['minutes']:.1f} minutes; idle after {after['idle_after']:.0%}, load {after['load_after']:.1f}")


def aims(cell: dict) -> dict[str, float | None]:
    """{peer: target or None} of the summary: those with targets of their own, and the fastest torch variant."""
    targets = dict(cell["targets"])
    strong = [v for v, side in cell["peers"].items() if side == "torch" and v not in cell["apart"]]
    if strong:
        targets.setdefault(min(strong, key=cell["median_ms"].get), targets.pop("torch", None))
    return targets

"""The training loop, read top to bottom: `vimlab train --config configs/x.py:arg --workdir DIR`.

The loop's law, in this order: evaluate the state at step i, save it, take the next batch, make the step. Randomness is
a function of (seed, stream, step) and the batch of (seed, step), so the step is the whole position of a run, and running
the same command again continues as if nothing had happened.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from clu import parameter_overview

from vimlab import config as configs
from vimlab import exits, paths
from vimlab import run as runs
from vimlab.checkpoint import Checkpointer
from vimlab.config import ConfigError
from vimlab.data.pipeline import TrainPipeline
from vimlab.data.prefetch import prefetch_to_mesh
from vimlab.evals import evaluate
from vimlab.evals.report import write_report
from vimlab.export import init_from
from vimlab.metrics import Averages, Progress, Speed, Writer, clock
from vimlab.parallel import exchange, multihost
from vimlab.parallel.rules import batch_sharding, rows_here
from vimlab.parallel.stopping import StopSignal
from vimlab.run import Run
from vimlab.tasks.task import RunConfig


def main(argv: Sequence[str]) -> int:
    """The `train` command. Returns the exit code: 0 finished, 75 stopped by a signal after saving."""
    argv, overrides = configs.split_overrides(argv)
    parser = argparse.ArgumentParser(prog="vimlab train", description="Train, or continue, the run of a workdir.")
    parser.add_argument("--config", required=True, help="config file, as in configs/vitvq_emoji.py or configs/vitvq_emoji.py:smoke; "
                        "set single keys with --config.optim.learning_rate=1e-4")
    parser.add_argument("--workdir", required=True, type=paths.place, help="folder of the run, here or in a bucket (gs://…); the same command on the same folder resumes it")
    parser.add_argument("--allow-config-change", action="store_true", help="resume although the config has changed what is computed")
    multihost.add_flags(parser)
    args = parser.parse_args(argv)
    with multihost.joined(args):
        config = runs.resolve(configs.load(args.config), overrides)
        return train(config, args.workdir, allow_config_change=args.allow_config_change)


def train(config: RunConfig, workdir: paths.Path, *, allow_config_change: bool = False) -> int:
    """Trains to the config's end, or continues to it. Returns the exit code (see `main`).

    Raises:
      ConfigError, DataError, ShardingError, CheckpointError: a mistake of the user's, before any long work.
    """
    started = time.time()
    exchange.compare("command", {"workdir": str(workdir), "allow-config-change": allow_config_change, "config": runs.to_dict(config)})
    exchange.first(lambda: check_workdir(config, workdir, allow_config_change))
    run = Run(config.within(workdir))
    task, total = run.task, run.total_steps
    sources = {"training": run.train_source, "evaluation": run.eval_source}
    exchange.compare("data", {name: source and source.info.fingerprint for name, source in sources.items()} | task.identity)
    frozen = run.frozen  # Reads the files of weights: a wrong one shows now.
    checkpoints = Checkpointer(
        workdir / "checkpoints",
        keep=config.checkpoint.keep,
        keep_every_steps=run.to_steps(config.checkpoint.keep_every) if config.checkpoint.keep_every else None,
    )
    save_every = max(run.to_steps(config.checkpoint.every), 1)
    log_every = max(run.to_steps(config.log.every), 1)
    evaluators = config.evals.enabled()
    eval_every = {name: max(run.to_steps(e.every), 1) for name, e in evaluators.items()}
    if evaluators and run.eval_source is None:
        raise ConfigError("config.evals asks for evaluations, but neither config.data.eval nor config.data.holdout gives images for them")

    with jax.set_mesh(run.mesh), checkpoints:
        # ---- the state: restored, else fresh ----
        restored = checkpoints.restore(run.abstract_state())
        if restored:
            start, state, meta = restored
            check_data(meta, run, allow_config_change)
            averages = Averages(meta["averages"])
            logging.info("resuming %s at step %d of %d", workdir, start, total)
        else:
            start, averages = 0, Averages()
            state = jax.jit(task.init, out_shardings=run.shardings)(run.root)
            if config.init_from:
                state = start_from(config.init_from, state)
        describe(run, config, state, workdir, started, start)
        step_fn = jax.jit(task.train_step, donate_argnums=0, out_shardings=(run.shardings, None))

        pipeline = TrainPipeline(
            run.train_source, image_size=task.image_size, crop=config.data.crop, batch_size=config.batch_size, seed=config.seed,
            rows=rows_here(run.mesh, config.batch_size), threads=config.data.threads, prefetch=config.data.prefetch,
            max_bad=config.data.max_bad, text=task.text, views=config.data.views,
        )
        batches = prefetch_to_mesh(pipeline.iterate(start), batch_sharding(run.mesh), depth=config.data.prefetch)
        writer = Writer(workdir, resume_step=start, tensorboard=config.log.tensorboard)
        speed, progress = Speed(config.batch_size, task.flops_per_example()), Progress(start, total)
        guard = NonfiniteGuard(config.max_nonfinite, workdir)
        stop, profiling = StopSignal(start), False
        profile = paths.Staging(workdir / "profile")

        def save(step, *, wait=False):
            meta = {"config": runs.to_dict(config), "averages": averages.sums(), "data_position": step, "inference_networks": task.inference_networks,
                    **run.environment()}
            writer.flush()  # A resumed run finds every row up to a checkpoint that counts.
            checkpoints.save(step, state, meta, wait=wait)

        # ---- the loop ----
        try:
            for step in range(start, total + 1):
                paused, stopping = time.perf_counter(), stop.reached(step)
                if step > start:
                    due = {name: e for name, e in evaluators.items() if step % eval_every[name] == 0 or step == total}
                    if due:
                        figures = evaluate(due, run.subject(state, step), workdir)
                        writer.write(step, figures)
                        progress.note(step, figures)
                    if step % save_every == 0 or step == total or stopping:
                        save(step, wait=stopping or step == total)
                    if stopping:
                        logging.warning("stopped by %s at step %d; the state is saved, the same command goes on", stop.name, step)
                        return exits.RESTART
                if step == total:
                    break
                speed.pause(time.perf_counter() - paused)

                if config.log.profile_at == step:
                    jax.profiler.start_trace(str(profile.path))
                    profiling = True
                batch = next(batches)
                state, metrics = step_fn(state, frozen, batch, run.root)
                speed.step()
                averages.add(metrics)
                guard.watch(step, metrics, batch)
                if profiling and step == config.log.profile_at + config.log.profile_steps - 1:
                    jax.block_until_ready(state)
                    jax.profiler.stop_trace()
                    profile.publish()
                    profiling = False

                if (step + 1) % log_every == 0:
                    figures = {f"train/{k}": v for k, v in averages.take().items()}
                    figures |= {f"train/{k}": v for k, v in task.rates(step).items()}
                    performance = speed.take(batches.wait_seconds) | {"train/bad_images": pipeline.bad["bad"]}
                    writer.write(step + 1, figures | alarms(figures, step + 1, config))
                    writer.write(step + 1, performance, performance=True)
                    progress.show(step + 1, figures | performance)
            exchange.gather(None, "the end of training")  # Until all are here, one may ask all to stop.
        finally:
            stop.restore()
            if profiling:
                jax.profiler.stop_trace()
            batches.close()
            progress.end()
            writer.close()
    if jax.process_index() == 0:
        print(f"finished {total} steps in {clock(time.time() - started)}; report: {write_report(workdir)}")
    return exits.FINISHED


def check_workdir(config: RunConfig, workdir: paths.Path, allow_change: bool) -> None:
    """Compares the config with the one that the workdir's run was started with.

    Raises:
      ConfigError: that config computes something else, or the folder is not empty and not a run's, or a bucket that cannot be reached.
    """
    paths.check(workdir)
    new, path = runs.to_dict(config), workdir / "config.json"
    if path.exists():
        # Resolved, so that keys which are newer than the run have their defaults.
        refused, free = runs.changes(runs.to_dict(runs.read_config(workdir)), new)
        for line in refused + free:
            logging.warning("the config has changed since this run began: %s", line)
        if refused and not allow_change:
            more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise ConfigError(f"the run in {workdir} was started with another config ({'; '.join(refused[:5])}{more}); use another --workdir, "
                              "or --allow-config-change to go on all the same")
    elif workdir.is_dir() and any(path.name != "logs" for path in workdir.iterdir()):  # A launcher's logs are there first.
        raise ConfigError(f"--workdir {workdir} is not empty and is not the workdir of a run; choose a new folder")


def check_data(meta: dict, run: Run, allow_change: bool) -> None:
    """Raises ConfigError where the data, or what the task stands on, has changed since the checkpoint was written."""
    for name, now in run.task.identity.items():
        then = meta["identity"][name]
        if then != now:
            raise ConfigError(f"this run began with another {name} (fingerprint {then}) than the one it finds now ({now}); the codes would mean "
                              "other things, so start in another --workdir")
    old, new = meta["data"]["fingerprint"], run.train_source.info.fingerprint
    if old != new and not allow_change:
        raise ConfigError(f"the training data {run.config.data.train!r} has changed since this run began (fingerprint {old} → {new}); "
                          "use another --workdir, or --allow-config-change to go on all the same")


def start_from(path: str, state):
    """The fresh state with the weights found at `path`."""
    params, missing = init_from(path, state.params)
    if missing:
        logging.warning("init_from %s holds no %s: it starts fresh", path, " and no ".join(missing))
    params = state.params | params
    return state.replace(params=params, ema={name: jax.tree.map(lambda x: x.copy(), params[name]) for name in state.ema})


def describe(run: Run, config: RunConfig, state, workdir: paths.Path, started: float, start: int) -> None:
    """Says what is about to run, and writes run.json and the table of parameters."""
    info = run.train_source.info
    counts = {name: sum(x.size for x in jax.tree.leaves(p)) for name, p in state.params.items()}
    logging.info("data: %s, %d images%s", info.name, info.size, f", {len(info.class_names)} classes" if info.class_names else "")
    logging.info("parameters: %s", ", ".join(f"{name} {n:,}" for name, n in counts.items()))
    logging.info("%s, mesh %s, %s; steps %d to %d", run.environment()["devices"], dict(run.mesh.shape), np.dtype(run.dtype).name, start, run.total_steps)
    for note in run.task.notes():
        logging.info("%s", note)
    text = exchange.first(lambda: write_start(run, config, state.params, workdir, {"step": start, "time": started}, counts))
    if not (workdir / "run.json").is_file() or (workdir / "run.json").read_text() != text:
        raise ConfigError(f"--workdir {workdir} is another folder on process {jax.process_index()} than on process 0, whose run.json it does not "
                          "see there; choose a folder on a file system that all processes share")


def write_start(run: Run, config: RunConfig, params, workdir: paths.Path, start: dict, counts: dict[str, int]) -> str:
    """Writes what stands in a workdir before the first step. Returns the text of run.json, in which this start is the last."""
    paths.make_folder(workdir)
    run.task.write_companions(workdir)
    (workdir / "parameters.txt").write_text(parameter_overview.get_parameter_overview(params, include_stats=False) + "\n")
    runs.write_json(workdir / "config.json", runs.to_dict(config))
    path = workdir / "run.json"
    starts = json.loads(path.read_text())["starts"] if path.exists() else []
    starts.append(start | {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start["time"]))})
    runs.write_json(path, run.environment() | {"parameters": counts, "total_steps": run.total_steps, "seed": config.seed, "starts": starts})
    return path.read_text()


def alarms(figures: dict[str, float], step: int, config: RunConfig) -> dict[str, str]:
    """What the user should look at, as an `event` and its `message` for the log row."""
    usage = figures.get("train/codebook_usage")
    if usage is not None and usage < config.log.usage_alarm:
        message = f"codebook collapse: only {usage:.1%} of the codes are in use at step {step}; see config.reseed"
        logging.warning("%s", message)
        return {"event": "collapse", "message": message}
    return {}


class NonfiniteGuard:
    """Counts steps whose loss or gradients were not finite (the step itself left the state as it was), and stops at a streak.

    It looks at a step's outcome one step later, when the device is already at work on the next.
    """

    def __init__(self, limit: int, workdir: paths.Path) -> None:
        self._limit, self._workdir, self._streak, self._last = limit, workdir, 0, None

    def watch(self, step: int, metrics, batch) -> None:
        """Raises FloatingPointError after `limit` bad steps in a row, with the batch of the first saved."""
        last, self._last = self._last, (step, metrics["nonfinite_share"][0], batch)
        if last is None or not float(jax.device_get(last[1])):
            self._streak = 0
            return
        self._streak += 1
        if self._streak == 1:
            file = self._workdir / f"nonfinite_{last[0]:08d}_process{jax.process_index()}.npz"
            arrays = {k: np.concatenate([np.asarray(s.data) for s in v.addressable_shards]) for k, v in last[2].items()}
            with paths.beside(file) as whole:
                np.savez(whole, **arrays)
            logging.warning("step %d had a loss or gradient that is not finite and was skipped; its batch is in %s", last[0], file)
        if self._streak >= self._limit:
            raise FloatingPointError(f"{self._streak} steps in a row had a loss or gradient that is not finite; the first such batch is in "
                                     f"{self._workdir}; lower config.optim.learning_rate, set config.optim.clip, or look at that batch")


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["train", *sys.argv[1:]])

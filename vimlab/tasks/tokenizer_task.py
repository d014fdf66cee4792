"""Training a tokenizer: generator and discriminator in one compiled step (sections 3.1 to 3.3 of the ViT-VQGAN paper)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from vimlab import optim as optimizers
from vimlab.config import Duration
from vimlab.data.base import SourceInfo
from vimlab.losses import adversarial, perceptual, reconstruction
from vimlab.parallel import rules
from vimlab.paths import Path
from vimlab.random import stream
from vimlab.state import TrainState
from vimlab.tasks.task import Metrics
from vimlab.tasks.tokenizer_config import TokenizerRun
from vimlab.tokenizers import codebook
from vimlab.tokenizers.discriminator import Discriminator, discriminator_flops
from vimlab.tokenizers.quantizers import mean_latents

VGG16_FLOPS_PER_PIXEL = 40.4e9 / 256**2  # Forward pass of the convolutions up to relu5_3.


class TokenizerTask:
    """See `vimlab.tasks.task.Task`.

    Args:
      config: the run's.
      total_steps: of the whole run.
      to_steps: turns a Duration into steps.
      dtype: of matrix products.
      info: of the training data, which a tokenizer needs nothing of.
      vgg: the perceptual loss's weights; read from its files if not given.
    """

    inference_networks = ("tokenizer",)
    text = None

    def __init__(
        self, config: TokenizerRun, total_steps: int, to_steps: Callable[[Duration], int], dtype: DTypeLike, info: SourceInfo | None = None,
        *, vgg: Any = None,
    ) -> None:  # fmt: skip
        self.config, self.image_size, self.spec = config, config.model.image_size, config.model.spec
        self.identity: dict[str, str] = {}
        self.model, self._dtype, self._vgg = config.model.make(dtype), dtype, vgg
        self._rates = {"tokenizer": config.optim.rate(total_steps, to_steps)}
        self._tx = {"tokenizer": config.optim.make(self._rates["tokenizer"])}
        gan = config.loss.adversarial
        if gan:
            optim = config.discriminator_optim or config.optim
            self._rates["discriminator"] = optim.rate(total_steps, to_steps)
            self._tx["discriminator"] = optim.make(self._rates["discriminator"])
            widths = (gan.channel_multiplier, gan.base_channels, gan.max_channels)
            self.discriminator = Discriminator(self.image_size, *widths, gan.minibatch_group, dtype)
            # Differentiated twice, so in f32 whatever the policy.
            self._discriminator32 = Discriminator(self.image_size, *widths, gan.minibatch_group)
            self._train_start, self._loss_start = to_steps(gan.train_start), to_steps(gan.loss_start)
        if config.reseed:
            self._reseed_every = max(to_steps(config.reseed.every), 1)
            self._reseed_until = total_steps if config.reseed.until is None else to_steps(config.reseed.until)
        self._window = self._reseed_every if config.reseed else 100

    @functools.cached_property
    def frozen(self) -> dict[str, Any]:
        """Weights that no step changes; an argument of the step, for constants would be compiled into it."""
        lpips = self.config.loss.perceptual
        return {"vgg": self._vgg or perceptual.load_weights(*lpips.weights)} if lpips and lpips.weights else {}

    def notes(self) -> list[str]:
        """What the user should know before a long run."""
        lpips = self.config.loss.perceptual
        if self._vgg is not None:
            return ["the perceptual loss has weights that were handed to it, not those of its files"]
        if lpips and lpips.weights:
            return [perceptual.provenance(*lpips.weights)]
        return ["the perceptual loss is off: config.loss.perceptual.weights names no files"] if lpips else []

    # ---- state ----

    def _boxed_params(self, key: jax.Array) -> dict[str, Any]:
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        params = {"tokenizer": self.model.init(stream(key, "init tokenizer"), images)["params"]}
        if self.config.loss.adversarial:
            group = self.config.loss.adversarial.minibatch_group
            params["discriminator"] = self.discriminator.init(stream(key, "init discriminator"), jnp.repeat(images, group, 0))["params"]
        return params

    def init(self, key: jax.Array) -> TrainState:
        params = nn.unbox(self._boxed_params(key))
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state={name: tx.init(params[name]) for name, tx in self._tx.items()},
            # A copy: two names of one buffer could not be donated.
            ema={"tokenizer": jax.tree.map(jnp.copy, params["tokenizer"])} if self.config.ema else {},
            extra={
                "idle": jnp.full(self.config.model.quantizer.codes, codebook.NEVER_USED, jnp.int32),
                "nonfinite": {"total": jnp.int32(0), "streak": jnp.int32(0)},
            },
        )

    def shardings(self, mesh: Mesh) -> TrainState:
        if mesh.shape["stage"] > 1:
            other = dict(mesh.shape) | {"fsdp": mesh.shape["fsdp"] * mesh.shape["stage"], "stage": 1}
            raise rules.ShardingError(f"config.mesh has stage={mesh.shape['stage']}, but a tokenizer is not trained in a pipeline; "
                                      f"use a mesh such as {rules.show(other)}")
        boxed = jax.eval_shape(self._boxed_params, jax.random.key(0))
        abstract = jax.eval_shape(nn.unbox, boxed)
        params = rules.param_shardings(mesh, abstract, rules.logical_axes(boxed))
        rules.check_sharded(mesh, abstract, params)
        whole = NamedSharding(mesh, PartitionSpec())
        return TrainState(
            step=whole,
            params=params,
            opt_state={name: rules.opt_shardings(mesh, tx, abstract[name], params[name]) for name, tx in self._tx.items()},
            ema={"tokenizer": params["tokenizer"]} if self.config.ema else {},
            extra={"idle": whole, "nonfinite": {"total": whole, "streak": whole}},
        )

    # ---- the step ----

    def train_step(
        self, state: TrainState, frozen: Any, batch: dict[str, jax.Array], root: jax.Array
    ) -> tuple[TrainState, Metrics]:
        grads, metrics, counts, latents = self._gradients(state, frozen, batch["image"])
        norms = {name: optax.tree.norm(g) for name, g in grads.items()}
        finite = jnp.isfinite(sum(norms.values()) + metrics["loss"][0])
        # A step that went wrong leaves everything as it was, except that it is counted. A branch, for a choice between two
        # whole states costs a CPU as much as the optimizer itself.
        leave = lambda state, *_: (state, {name: jnp.float32(0) for name in self._tx})
        new, moved = jax.lax.cond(finite, self._update, leave, state, grads, counts, latents, root)
        idle, bad = new.extra["idle"], state.extra["nonfinite"]
        nonfinite = {"total": bad["total"] + ~finite, "streak": jnp.where(finite, 0, bad["streak"] + 1)}
        new = new.replace(step=state.step + 1, extra=new.extra | {"nonfinite": nonfinite})

        one = jnp.float32(1)
        for name in self._tx:
            prefix = "" if name == "tokenizer" else "disc_"
            metrics[prefix + "grad_norm"] = (norms[name], one)
            metrics[prefix + "update_norm"] = (moved[name], one)
            metrics[prefix + "param_norm"] = (optax.tree.norm(new.params[name]), one)
        metrics["codebook_usage_batch"] = ((counts > 0).mean(), one)
        metrics["codebook_usage"] = ((idle < self._window).mean(), one)
        metrics["dead_codes"] = ((idle >= self._window).sum().astype(jnp.float32), one)
        metrics["perplexity"] = (codebook.perplexity(counts), one)
        # A value that is not finite would spoil the average that it enters; the step is counted instead.
        metrics = {k: (jnp.where(finite, s, 0), jnp.where(finite, w, 0)) for k, (s, w) in metrics.items()}
        metrics["nonfinite_share"] = ((~finite).astype(jnp.float32), one)
        return new, metrics

    def _update(
        self, state: TrainState, grads: dict[str, Any], counts: jax.Array, latents: jax.Array, root: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The state after finite gradients, and how far each network's parameters moved, f32[]."""
        params, opt_state, moved = {}, {}, {}
        for name, tx in self._tx.items():
            old = state.params[name]
            updates, opt_state[name] = tx.update(grads[name], state.opt_state[name], old)
            if name == "discriminator" and self._train_start:
                # Its optimizer waits too, so that moments and warm-up begin when it does.
                trains = state.step >= self._train_start
                updates = optax.tree.where(trains, updates, optax.tree.zeros_like(updates))
                opt_state[name] = optax.tree.where(trains, opt_state[name], state.opt_state[name])
            params[name] = optax.apply_updates(old, updates)
            moved[name] = optax.tree.norm(optax.tree.sub(params[name], old))
        ema = state.ema
        if self.config.ema:
            ema = {"tokenizer": optimizers.update_average(ema["tokenizer"], params["tokenizer"], self.config.ema)}
        idle = codebook.idle_steps(state.extra["idle"], counts)
        new = state.replace(params=params, opt_state=opt_state, ema=ema, extra=state.extra | {"idle": idle})
        if self.config.reseed:
            new = self._reseed(new, latents, stream(root, "reseed", state.step))
        return new, moved

    def _gradients(self, state: TrainState, frozen: Any, images: jax.Array) -> tuple[dict[str, Any], Metrics, jax.Array, jax.Array]:
        """Gradients and metrics of a batch u8[B,H,W,3], code counts i32[K] and latents f32[B,N,C]; in parts, if so configured."""
        parts = self.config.accumulate
        if parts == 1:
            return self._part(state, frozen, images)
        # Each part takes examples from every device's share, in whole groups of those that the discriminator compares.
        group = self.config.loss.adversarial.minibatch_group if self.config.loss.adversarial else 1
        split = images.reshape(-1, parts, group, *images.shape[1:]).swapaxes(0, 1).reshape(parts, -1, *images.shape[1:])

        def body(carry, part):
            *sums, latents = self._part(state, frozen, part)
            return jax.tree.map(jnp.add, carry, sums), latents

        shapes = jax.eval_shape(lambda part: self._part(state, frozen, part)[:3], split[0])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), list(shapes))
        (grads, metrics, counts), latents = jax.lax.scan(body, zeros, split)
        latents = latents.reshape(parts, -1, group, *latents.shape[2:]).swapaxes(0, 1).reshape(-1, *latents.shape[2:])
        return jax.tree.map(lambda g: g / parts, grads), metrics, counts, latents

    def _part(self, state: TrainState, frozen: Any, images: jax.Array) -> tuple[dict[str, Any], Metrics, jax.Array, jax.Array]:
        images = rules.constrain(images.astype(jnp.float32) / 255, "batch", "height", "width", "channels")

        def generate(params):
            out = self.model.apply({"params": params}, images)
            terms = self._terms(frozen, images, out)
            loss = sum(weight * value.mean() for weight, value in terms.values())
            return (out.images, loss), (terms, out.quantized)

        (fakes, loss), pull, (terms, quantized) = jax.vjp(generate, state.params["tokenizer"], has_aux=True)
        grads, pixels, metrics = {}, jnp.zeros_like(fakes), {}
        size = jnp.float32(images.shape[0])
        if self.config.loss.adversarial:
            pixels, grads["discriminator"], felt, metrics = self._adversary(state, images, fakes)
            loss += felt
        grads["tokenizer"] = pull((pixels, jnp.float32(1)))[0]
        metrics |= {name: (value.sum(), size) for name, (_, value) in terms.items()}
        metrics["psnr"] = (reconstruction.psnr(images, fakes).sum(), size)
        metrics["loss"] = (loss * size, size)
        counts = codebook.count_codes(quantized.ids, self.config.model.quantizer.codes)
        return grads, metrics, counts, quantized.latents

    def _terms(self, frozen: Any, images: jax.Array, out: Any) -> dict[str, tuple[float, jax.Array]]:
        """{name: (weight, f32[B])} of every loss but the adversarial one."""
        loss = self.config.loss
        terms = {"l2": (loss.l2, reconstruction.l2(images, out.images)), "l1": (loss.l1, reconstruction.l1(images, out.images))}
        if loss.logit_laplace:
            nll = reconstruction.logit_laplace_nll(images, *out.laplace, self.config.model.laplace_epsilon)
            terms["logit_laplace"] = (loss.logit_laplace, nll)
        if "vgg" in frozen:
            terms["perceptual"] = (loss.perceptual.weight, perceptual.lpips(frozen["vgg"], images, out.images, self._dtype))
        return terms | {name: (loss.codebook, value) for name, value in out.quantized.losses.items()}

    def _adversary(self, state: TrainState, images: jax.Array, fakes: jax.Array) -> tuple[jax.Array, Any, jax.Array, Metrics]:
        """The gradient that fakes feel, the discriminator's own, the weighted generator loss, and metrics.

        One forward pass on the fakes serves both networks.
        """
        gan, params, step = self.config.loss.adversarial, state.params["discriminator"], state.step

        def compute():
            judge = lambda p, x: self.discriminator.apply({"params": p}, x)
            fake_logits, pull_fake = jax.vjp(judge, params, fakes)
            real_logits, pull_real = jax.vjp(lambda p: judge(p, images), params)
            weight = jnp.where(step >= self._loss_start, gan.weight, 0.0)
            fool = lambda fake: adversarial.generator_loss(fake, gan.form).mean()
            tell = lambda real, fake: adversarial.discriminator_loss(real, fake, gan.form).mean()
            g_loss, to_fool = jax.value_and_grad(fool)(fake_logits)
            d_loss, (to_real, to_fake) = jax.value_and_grad(tell, (0, 1))(real_logits, fake_logits)
            grads = jax.tree.map(jnp.add, pull_fake(to_fake)[0], pull_real(to_real)[0])

            size, due = jnp.float32(images.shape[0]), step % gan.r1_every == 0
            metrics = {
                "adversarial": (g_loss * size, size),
                "disc_loss": (d_loss * size, size),
                "disc_logits_real": (real_logits.sum(), size),
                "disc_logits_fake": (fake_logits.sum(), size),
            }
            if gan.r1:
                penalty = lambda p: adversarial.r1_penalty(lambda x: self._discriminator32.apply({"params": p}, x), images).mean()
                nothing = lambda p: (jnp.float32(0), jax.tree.map(jnp.zeros_like, p))
                with jax.default_matmul_precision("highest"):  # A TPU multiplies f32 numbers as bf16 ones unless told.
                    r1, r1_grads = jax.lax.cond(due, jax.value_and_grad(penalty), nothing, params)
                grads = jax.tree.map(lambda g, r: g + gan.r1 / 2 * gan.r1_every * r, grads, r1_grads)
                metrics["r1"] = (r1 * size, size * due)
            return weight * pull_fake(to_fool)[1], grads, weight * g_loss, metrics

        start = min(self._train_start, self._loss_start)
        if start == 0:
            return compute()
        shapes = jax.eval_shape(compute)
        return jax.lax.cond(step >= start, compute, lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))

    def _reseed(self, state: TrainState, latents: jax.Array, key: jax.Array) -> TrainState:
        params, idle = state.params["tokenizer"], state.extra["idle"]
        table = params["quantizer"]["codebook"]
        due = (state.step % self._reseed_every == 0) & (state.step < self._reseed_until)
        dead = due & (idle >= self._reseed_every)
        # Drawing from the whole batch is left to the rounds that need it: on a mesh it gathers latents.
        moved = lambda book: jax.lax.cond(due, lambda: codebook.reseed(key, dead, latents, book), lambda: book)
        params = params | {"quantizer": params["quantizer"] | {"codebook": moved(table)}}
        opt_state = codebook.forget_moments(state.opt_state["tokenizer"], dead, "codebook")
        ema = state.ema
        if ema:
            average = ema["tokenizer"]
            ema = {"tokenizer": average | {"quantizer": {"codebook": moved(average["quantizer"]["codebook"])}}}
        return state.replace(
            params=state.params | {"tokenizer": params}, opt_state=state.opt_state | {"tokenizer": opt_state}, ema=ema
        )

    # ---- what others may ask ----

    def predict_fns(self) -> dict[str, Callable[..., Any]]:
        """`reconstruct(state, frozen, images f32[B,H,W,3])` → f32[B,H,W,3] in [0,1]; `encode(state, frozen, images)` → Tokens;
        `features(state, frozen, images)` → {name: f32[B,C]}, see `mean_latents`.
        """
        best = lambda state: {"params": state.best("tokenizer")}
        return {
            "reconstruct": lambda state, _, images: self.model.apply(best(state), images).images.clip(0, 1),
            "encode": lambda state, _, images: self.model.apply(best(state), images, method="encode"),
            "features": lambda state, _, images: mean_latents(self.model.apply(best(state), images, method="quantize")),
        }

    def rates(self, step: int) -> dict[str, float]:
        return {"lr" if name == "tokenizer" else "disc_lr": float(rate(step)) for name, rate in self._rates.items()}

    def flops_per_example(self) -> float:
        flops = 3.0 * self.config.model.flops()
        if "vgg" in self.frozen:
            # Real and fake forward, and back to the fake's pixels.
            flops += 3 * VGG16_FLOPS_PER_PIXEL * self.image_size**2
        gan = self.config.loss.adversarial
        if gan:
            forward = discriminator_flops(self.image_size, gan.channel_multiplier, gan.base_channels, gan.max_channels)
            # Fake: forward, to its pixels, to the weights (2); real: forward, to the weights (2); R1: forward, back, and back of both.
            flops += forward * (7 + (6 / gan.r1_every if gan.r1 else 0))
        return flops

    def write_companions(self, workdir: Path) -> None:
        """A tokenizer needs nothing but its checkpoints."""

"""How near reconstructions come to held-out images: PSNR, SSIM, MS-SSIM, L1, L2, LPIPS where there are its weights, and a grid."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vimlab import pictures
from vimlab.config import ConfigError, Duration
from vimlab.evals import image_metrics
from vimlab.evals.evaluator import Result, Subject, to_host
from vimlab.losses import perceptual

COLUMNS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Evaluates reconstructions after rounding them to 8 bits, as anybody who saves them will see them.

    Attributes:
      every: how often during training.
      pictures: images shown, the first of the set; and of the worst as many, but at most a strip.
      lpips: paths of LPIPS's weights, one or two: see vimlab.losses.perceptual; without them it is left out.
    """

    NAME: ClassVar[str] = "reconstruction"
    every: Duration = Duration(1000)
    pictures: int = 16
    lpips: tuple[str, ...] = ()

    def __post_init__(self):
        if self.pictures < 0:
            raise ConfigError(f"pictures is {self.pictures}, but must not be negative")

    def run(self, subject: Subject) -> Result:
        """Reconstructs every image. Uses predict_fns["reconstruct"]. Raises PerceptualError for wrong weights of LPIPS."""
        reconstruct = subject.predict("reconstruct")
        vgg = perceptual.load_weights(*self.lpips) if self.lpips else None
        parts: list[dict[str, np.ndarray]] = []
        shown: list[tuple[np.ndarray, np.ndarray]] = []
        missing, worst = self.pictures, Worst(min(self.pictures, COLUMNS))
        for images, real in subject.examples():
            rounded = _round(reconstruct(subject.state, images))
            if rounded.shape != images.shape:
                raise ConfigError(
                    f"reconstructions of shape {rounded.shape} cannot be compared with images of {images.shape}; "
                    "evaluate at the model's own image size"
                )
            parts.append({k: to_host(v)[real] for k, v in _figures(images, rounded, vgg).items()})
            if self.pictures:
                pair = [pictures.to_uint8(to_host(x)[real]) for x in (images, rounded)]
                worst.add(parts[-1]["lpips"] if vgg else -parts[-1]["psnr"], np.stack(pair, 1))
            if missing:
                shown.append((pair[0][:missing], pair[1][:missing]))
                missing -= len(shown[-1][0])
        # Every image's figures, in the set's order and in f64: no batch size or number of devices enters the means.
        values = {k: np.concatenate([p[k] for p in parts]).astype(np.float64) for k in parts[0]}
        means = {k: float(v.mean()) for k, v in values.items()}
        means["psnr_of_mean_mse"] = float(image_metrics.psnr_of_mse(means["l2"]))
        metrics = {k: means[k] for k in ("psnr", "psnr_of_mean_mse", "ssim", "ms_ssim", "lpips", "l1", "l2") if k in means}
        protocol = {
            "count": len(values["l2"]),
            "rounding": "uint8",
            "data_range": 1.0,
            "psnr": "mean over images of PSNR, each at most 100 dB",
            "psnr_of_mean_mse": "PSNR of the mean over images of MSE",
            "ssim": "Gaussian 11x11, sigma 1.5, K 0.01 and 0.03, per channel, valid region",
        }
        if "ms_ssim" in metrics:
            protocol["ms_ssim"] = "SSIM's window at 5 scales of 2x2 means, weights of Wang et al. 2003, per channel"
        if vgg:
            protocol["lpips"] = f"mean over images of LPIPS v0.1 on VGG16, f32, at the images' own size; {perceptual.provenance(*self.lpips)}"
            protocol["lpips_sha256"] = perceptual.hashes(*self.lpips)
        if not shown:
            return Result(metrics=metrics, protocol=protocol)
        protocol["worst"] = "by LPIPS" if vgg else "by PSNR"
        arrays = {"worst": worst.places.tolist()}
        labels = [f"image {place}, {values['psnr'][place]:.1f} dB" + (f", LPIPS {values['lpips'][place]:.3f}" if vgg else "") for place in worst.places]
        failures = pictures.captioned(worst.images[:, 0], labels, beside=worst.images[:, 1])
        return Result(metrics=metrics, protocol=protocol, pictures={self.NAME: _grid(shown), f"{self.NAME}_worst": failures}, arrays=arrays)


class Worst:
    """The pictures with the largest of some numbers, the largest first; of equal ones the first.

    Attributes:
      places: in the set, of real images, counted from 0.
      images: of these.
    """

    def __init__(self, count: int) -> None:
        self._count, self._seen, self._badness = count, 0, np.zeros(0)
        self.places, self.images = np.zeros(0, int), None

    def add(self, badness: np.ndarray, images: np.ndarray) -> None:
        """The next pictures of the set [B,…] and their numbers [B], which may be NaN: the worst of all."""
        badness = np.concatenate([self._badness, np.where(np.isnan(badness), np.inf, badness)])
        places = np.concatenate([self.places, self._seen + np.arange(len(images))])
        every = images if self.images is None else np.concatenate([self.images, images])
        kept = np.argsort(-badness, kind="stable")[: self._count]
        self._badness, self.places, self.images = badness[kept], places[kept], every[kept]
        self._seen += len(images)


@jax.jit
def _round(images: jax.Array) -> jax.Array:
    return jnp.round(jnp.clip(images.astype(jnp.float32), 0, 1) * 255) / 255


@jax.jit
def _figures(images: jax.Array, rounded: jax.Array, vgg: perceptual.Weights | None) -> dict[str, jax.Array]:
    """Per image, f32[B] each."""
    figures = {"psnr": image_metrics.psnr, "l1": image_metrics.mae, "l2": image_metrics.mse}
    if min(images.shape[1:3]) > 2 * image_metrics.SSIM_RADIUS:
        figures["ssim"] = image_metrics.ssim
    if min(images.shape[1:3]) >= image_metrics.MS_SSIM_SMALLEST:
        figures["ms_ssim"] = image_metrics.ms_ssim
    found = {name: metric(images, rounded) for name, metric in figures.items()}
    if vgg is not None:
        with jax.default_matmul_precision("highest"):
            found["lpips"] = perceptual.lpips(vgg, images, rounded)
    return found


def _grid(shown: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Strips of up to eight inputs, each over the strip of their reconstructions."""
    inputs, outputs = (np.concatenate(images) for images in zip(*shown, strict=True))
    rows = [x[i : i + COLUMNS] for i in range(0, len(inputs), COLUMNS) for x in (inputs, outputs)]
    return pictures.grid(rows, labels=["input", "reconstruction"] * (len(rows) // 2))

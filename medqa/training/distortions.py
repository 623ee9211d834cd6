"""What happens to medical images: one function per family of damage, each with a strength.

A distortion takes a (rows, columns) float image in [0, 1], a strength in (0, 1] and a random
generator, and returns a new image in [0, 1]. Strength 1 is gross, 0.01 hardly measurable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import imagecodecs
import numpy as np
import scipy.ndimage as ndi
import scipy.signal
from numpy.random import Generator
from numpy.typing import NDArray
from skimage import restoration

__all__ = ["DENOISERS", "FAMILIES", "Distortion", "noise"]

Array = NDArray[np.floating]
Distortion = Callable[[Array, float, Generator], Array]


def _log(strength: float, gentle: float, gross: float) -> float:
    """Interpolate on a logarithmic scale: `gentle` at strength 0, `gross` at 1."""
    return float(gentle * (gross / gentle) ** strength)


def white_noise(x: Array, strength: float, rng: Generator) -> Array:
    """Add independent Gaussian noise."""
    return x + _log(strength, 0.001, 0.2) * rng.standard_normal(x.shape)


def textured_noise(x: Array, strength: float, rng: Generator) -> Array:
    """Add noise with the grain of a reconstruction kernel: band-limited, often anisotropic."""
    grain = rng.uniform(0.4, 2.5, size=2) if rng.random() < 0.5 else rng.uniform(0.4, 2.5)
    texture = ndi.gaussian_filter(rng.standard_normal(x.shape), grain)
    if rng.random() < 0.5:  # a ramp filter leaves no low frequencies
        texture -= ndi.gaussian_filter(texture, 2 * np.max(grain))
    return x + _log(strength, 0.001, 0.15) * texture / texture.std()


def signal_noise(x: Array, strength: float, rng: Generator) -> Array:
    """Noise that grows with the signal: quantum noise, or speckle."""
    power = 0.5 if rng.random() < 0.5 else 1.0
    noise_ = ndi.gaussian_filter(rng.standard_normal(x.shape), rng.uniform(0, 1.0))
    return x + _log(strength, 0.002, 0.4) * np.maximum(x, 0) ** power * noise_ / noise_.std()


def rician_noise(x: Array, strength: float, rng: Generator) -> Array:
    """Magnitude of a signal with complex noise, as in MR."""
    sigma = _log(strength, 0.002, 0.2)
    real, imaginary = sigma * rng.standard_normal((2, *x.shape))
    return np.hypot(x + real, imaginary)


def blur(x: Array, strength: float, rng: Generator) -> Array:
    """Gaussian blur, sometimes along one axis more."""
    sigma = _log(strength, 0.25, 5.0)
    return ndi.gaussian_filter(x, (sigma, sigma * rng.uniform(0.3, 1)))


def motion(x: Array, strength: float, rng: Generator) -> Array:
    """Blur along a direction."""
    angle, reach = rng.uniform(0, np.pi), _log(strength, 0.5, 8.0)
    steps = [(reach * t * np.sin(angle), reach * t * np.cos(angle)) for t in np.linspace(-1, 1, 7)]
    return np.mean([ndi.shift(x, step, order=1, mode="nearest") for step in steps], axis=0)


def jpeg(x: Array, strength: float, _rng: Generator) -> Array:
    """JPEG baseline, 8 bits."""
    stored = np.round(x * 255).astype(np.uint8)
    coded = imagecodecs.jpeg8_encode(stored, level=round(98 - 93 * strength))
    return np.asarray(imagecodecs.jpeg8_decode(coded), dtype=np.float64) / 255


def jpeg2000(x: Array, strength: float, rng: Generator) -> Array:
    """JPEG 2000 (9/7 wavelet) on 12 stored bits, of which the window shows a part."""
    span = int(rng.choice([255, 1023, 4095]))
    stored = np.round(x * span).astype(np.uint16)
    coded = imagecodecs.jpeg2k_encode(
        stored,
        level=62 - 38 * strength,  # type: ignore[arg-type]  # PSNR in dB, a float in OpenJPEG
        codecformat="j2k",
        bitspersample=12,
        mct=False,
    )
    decoded = np.asarray(imagecodecs.jpeg2k_decode(coded), dtype=np.float64)
    return decoded / span


def jpegls(x: Array, strength: float, _rng: Generator) -> Array:
    """JPEG-LS near-lossless on 12 bits."""
    stored = np.round(x * 4095).astype(np.uint16)
    coded = imagecodecs.jpegls_encode(stored, level=round(_log(strength, 4, 250)))
    return np.asarray(imagecodecs.jpegls_decode(coded), dtype=np.float64) / 4095


def resample(x: Array, strength: float, rng: Generator) -> Array:
    """Down- and up-sampling by splines: what a super-resolution network has to undo."""
    factor = 1 + _log(strength, 0.1, 5.0)
    small = ndi.zoom(x, 1 / factor, order=int(rng.integers(0, 4)), mode="nearest")
    grow = [a / b for a, b in zip(x.shape, small.shape, strict=True)]
    return ndi.zoom(small, grow, order=int(rng.integers(1, 4)), mode="nearest")


def median(x: Array, strength: float, _rng: Generator) -> Array:
    """Median filter, blended for gentle strengths."""
    size = 3 if strength < 0.5 else 5 if strength < 0.85 else 7
    return x + min(1.0, _log(strength, 0.1, 2.0)) * (ndi.median_filter(x, size) - x)


def nlm(x: Array, strength: float, _rng: Generator) -> Array:
    """Non-local means."""
    return restoration.denoise_nl_means(x, 5, 5, h=_log(strength, 0.01, 0.2), fast_mode=True)


def total_variation(x: Array, strength: float, _rng: Generator) -> Array:
    """Total-variation denoising: flat patches, kept edges."""
    return restoration.denoise_tv_chambolle(x, _log(strength, 0.005, 0.4), max_num_iter=40)


def wavelet(x: Array, strength: float, _rng: Generator) -> Array:
    """Wavelet shrinkage."""
    return restoration.denoise_wavelet(
        x, sigma=_log(strength, 0.005, 0.2), wavelet="db2", rescale_sigma=True
    )


def wiener(x: Array, strength: float, _rng: Generator) -> Array:
    """Local Wiener filter."""
    size = 3 if strength < 0.5 else 5 if strength < 0.8 else 9
    # SciPy divides by the local variance before it replaces what flat air makes of that.
    with np.errstate(divide="ignore", invalid="ignore"):
        return scipy.signal.wiener(x, size, noise=_log(strength, 1e-5, 2e-2))


def gamma(x: Array, strength: float, rng: Generator) -> Array:
    """Another tone curve."""
    return np.clip(x, 0, 1) ** np.exp(rng.choice([-1, 1]) * _log(strength, 0.01, 0.8))


def window_shift(x: Array, strength: float, rng: Generator) -> Array:
    """Another brightness and contrast."""
    shift, gain = rng.choice([-1, 1], 2) * _log(strength, 0.003, 0.25)
    return (x - 0.5) * (1 + gain) + 0.5 + shift


def sharpen(x: Array, strength: float, rng: Generator) -> Array:
    """Unsharp masking."""
    return x + _log(strength, 0.05, 4.0) * (x - ndi.gaussian_filter(x, rng.uniform(0.7, 2.0)))


def ringing(x: Array, strength: float, _rng: Generator) -> Array:
    """Gibbs ringing: the outer frequencies cut off, as by too small a k-space."""
    rows, columns = np.meshgrid(*(np.fft.fftfreq(n) for n in x.shape), indexing="ij")
    keep = 0.5 * (1 - _log(strength, 0.05, 0.8))
    inside = (np.abs(rows) <= keep) & (np.abs(columns) <= keep)
    return np.fft.ifft2(np.fft.fft2(x) * inside).real


def ghosting(x: Array, strength: float, rng: Generator) -> Array:
    """Shifted faint copies along the phase-encoding direction."""
    shift = x.shape[0] // int(rng.integers(2, 6))
    weight = _log(strength, 0.005, 0.4)
    return (1 - weight) * x + weight * np.roll(x, shift, axis=int(rng.integers(2)))


def shift(x: Array, strength: float, rng: Generator) -> Array:
    """Sub-pixel translation."""
    angle, reach = rng.uniform(0, 2 * np.pi), _log(strength, 0.03, 2.0)
    return ndi.shift(x, (reach * np.sin(angle), reach * np.cos(angle)), order=3, mode="nearest")


def _blob(x: Array, strength: float, rng: Generator) -> Array:
    """Return weights in [0, 1] of a smooth-edged ellipse, where the image is not black."""
    inside = np.argwhere(x > 0.1)
    row, column = inside[rng.integers(len(inside))] if len(inside) else (n // 2 for n in x.shape)
    reach = _log(strength, 2.5, 18.0)
    a, b = reach * rng.uniform(0.6, 1.2, 2)
    rows, columns = np.ogrid[: x.shape[0], : x.shape[1]]
    radius = np.sqrt(((rows - row) / a) ** 2 + ((columns - column) / b) ** 2)
    return np.clip((1.3 - radius) / 0.6, 0, 1)


def lesion_removed(x: Array, strength: float, rng: Generator) -> Array:
    """Smooth a patch away, as an over-eager network does."""
    weight = _blob(x, strength, rng)
    return x + weight * (ndi.gaussian_filter(x, rng.uniform(2, 8)) - x)


def lesion_inserted(x: Array, strength: float, rng: Generator) -> Array:
    """Add a low-contrast patch that was not there."""
    contrast = rng.choice([-1, 1]) * _log(rng.random(), 0.02, 0.4)
    return x + contrast * _blob(x, strength, rng)


FAMILIES: Mapping[str, Distortion] = {
    function.__name__: function
    for function in (
        white_noise, textured_noise, signal_noise, rician_noise, blur, motion, jpeg, jpeg2000,
        jpegls, resample, median, nlm, total_variation, wavelet, wiener, gamma, window_shift,
        sharpen, ringing, ghosting, shift, lesion_removed, lesion_inserted,
    )
}  # fmt: skip

#: The families that take noise away.
DENOISERS = ("blur", "median", "nlm", "total_variation", "wavelet", "wiener")


def noise(x: Array, strength: float, rng: Generator) -> Array:
    """One of the four kinds of noise."""
    families = (white_noise, textured_noise, signal_noise, rician_noise)
    return families[rng.integers(len(families))](x, strength, rng)

"""WAV files as samples, and what of a sound can't be one."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np

RATES = (1_000, 768_000)  # samples a second of what a file may have


def decoded(content: bytes) -> tuple[int, np.ndarray]:
    """Returns the samples a second of a WAV file, and its samples in −1…1 (samples,), the mean of its channels.

    Integers are divided by their largest value plus one, floats are as they are. Raises `ValueError` for what is no WAV
    file that can be read to its end, and for one without samples.
    """
    from scipy.io import wavfile

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            rate, samples = wavfile.read(io.BytesIO(content))
        except Exception as error:  # scipy's reader has no error of its own
            raise ValueError(f"is no WAV file that can be read ({type(error).__name__})") from None
    if cut := next((str(one.message) for one in said if "EOF" in str(one.message)), None):
        raise ValueError(f"is cut short ({cut.rstrip('.')})")
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"has {rate:,} samples a second; allowed: {RATES[0]:,} to {RATES[1]:,}")
    if not samples.size:
        raise ValueError("has no samples; allowed: one or more")
    if samples.dtype == np.uint8:
        samples = samples.astype(np.float32) / 128 - 1
    elif np.issubdtype(samples.dtype, np.integer):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    if not np.isfinite(samples).all():
        raise ValueError("has samples that are not finite")
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    return int(rate), mono.astype(np.float32)


def length(samples: int, rate: int, wanted: int) -> int:
    """Returns how many samples `resampled` makes of so many."""
    return math.ceil(samples * wanted / rate)


def resampled(content: bytes, wanted: int) -> np.ndarray:
    """Returns the samples (samples,) of a WAV file at `wanted` a second, through a filter without phase shift."""
    from scipy.signal import resample_poly

    rate, samples = decoded(content)
    if rate == wanted:
        return samples
    common = math.gcd(rate, wanted)
    found: np.ndarray = resample_poly(samples, wanted // common, rate // common).astype(np.float32)
    return found

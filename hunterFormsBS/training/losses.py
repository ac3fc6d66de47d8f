"""Weighted sums of losses, by Music-Source-Separation-Training's names.

    compute = Losses({"model": 1.0, "l1_loss": 0.5}, sample_rate=44100)
    total, terms = compute(model, mixture, estimates, stems)

`model` is the model's own loss. `multistft_loss` is auraloss's, log-WMSE torch-log-wmse's, and L1-SNR torch-l1-snr's
(extra `losses`).

Axis letters: b batch, n stem, s audio channel, t sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from hunterFormsBS.bandSplit import lossComputation
from hunterFormsBS.installation import how_to_install

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes estimates and true stems, `(b, n, s, t)`, and the mixture, `(b, s, t)`."""

L1_SNR: Final = {
    "l1_snr_loss": "L1SNRLoss",
    "l1_snr_db_loss": "L1SNRDBLoss",
    "stft_l1_snr_db_loss": "STFTL1SNRDBLoss",
    "multi_l1_snr_db_loss": "MultiL1SNRDBLoss",
}
NAMES: Final = (
    *("model", "l1_loss", "mse_loss", "masked_loss", "spec_masked_loss", "spec_rmse_loss"),
    *("multistft_loss", "log_wmse_loss", *L1_SNR),
)


class Losses:
    """A weighted sum of losses.

    Parameters
    ----------
    weights : mapping of str to float
        The weight of each loss; losses are those of `NAMES`.
    sample_rate : int
        Hz.
    quantile : float
        The masked losses ignore squared errors above this quantile.
    coarse : bool
        The masked losses compare means of whole stems instead of samples or bins.
    multi_stft : mapping, default None
        Arguments of `auraloss.freq.MultiResolutionSTFTLoss`.

    Raises
    ------
    ValueError
        If a loss is unknown.
    ImportError
        If its package is not installed.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        sample_rate: int,
        quantile: float = 0.95,
        coarse: bool = False,
        multi_stft: Mapping[str, Any] | None = None,
    ) -> None:
        if unknown := [name for name in weights if name not in NAMES]:
            raise ValueError(f"losses has {unknown[0]!r:.80}, which is unknown: choose from {', '.join(NAMES)}")
        self.weights = dict(weights)
        self.terms: dict[str, Loss] = {}
        for name in weights:
            if name == "l1_loss":
                self.terms[name] = lambda estimates, stems, _: functional.l1_loss(estimates, stems)
            elif name == "mse_loss":
                self.terms[name] = lambda estimates, stems, _: functional.mse_loss(estimates, stems)
            elif name == "masked_loss":
                self.terms[name] = lambda estimates, stems, _: masked_mse(estimates, stems, quantile, coarse)
            elif name == "spec_masked_loss":
                self.terms[name] = lambda estimates, stems, _: spec_masked_mse(estimates, stems, quantile, coarse)
            elif name == "spec_rmse_loss":
                self.terms[name] = lambda estimates, stems, _: root_mse(spectrum(estimates), spectrum(stems))
            elif name == "multistft_loss":
                self.terms[name] = _multi_stft(dict(multi_stft or {}))
            elif name == "log_wmse_loss":
                self.terms[name] = _log_wmse(sample_rate)
            elif name in L1_SNR:
                self.terms[name] = _of_two(_load(name, "torch_l1_snr", L1_SNR[name])(name=name))

    def __call__(
        self, model: nn.Module, mixture: Tensor, estimates: Tensor, stems: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum and, by name, each loss before weighting.

        Parameters
        ----------
        model : BandSplitRotator
            For its own loss, with its own settings.
        mixture : Tensor
            `(b, s, t)`.
        estimates, stems : Tensor
            `(b, n, s, t)`.
        """
        estimates, stems = estimates.float(), stems.float()
        terms: dict[str, Tensor] = {}
        for name in self.weights:
            if name == "model":
                multi_stft: Any = model.multi_stft
                terms[name] = lossComputation(estimates, stems, range(stems.shape[1]), multi_stft)
            else:
                terms[name] = self.terms[name](estimates, stems, mixture)
        total = torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()
        return total, terms


def masked_mse(estimates: Tensor, stems: Tensor, quantile: float, coarse: bool) -> Tensor:
    """Average squared errors, counting those above a quantile of each stem as zero.

    Parameters
    ----------
    estimates, stems : Tensor
        `(b, n, s, t)`.
    quantile : float
        In (0, 1].
    coarse : bool
        Take the means of audio channels and samples first.
    """
    errors = functional.mse_loss(estimates, stems, reduction="none").transpose(0, 1)
    return _below_quantile(errors.mean((-1, -2)) if coarse else errors.flatten(1), quantile)


def spec_masked_mse(estimates: Tensor, stems: Tensor, quantile: float, coarse: bool) -> Tensor:
    """Average squared errors of spectra, counting those above a quantile of each song as zero.

    Parameters
    ----------
    estimates, stems : Tensor
        `(b, n, s, t)`.
    quantile : float
        In (0, 1].
    coarse : bool
        Take the means of bins and frames first.
    """
    errors = functional.mse_loss(spectrum(estimates), spectrum(stems), reduction="none")
    return _below_quantile((errors.mean((-3, -2)) if coarse else errors).flatten(1), quantile)


def _below_quantile(errors: Tensor, quantile: float) -> Tensor:
    """Average errors, counting those at or above the quantile of their row as zero."""
    limits = _quantile(errors.detach(), quantile)
    return (errors * (errors < limits)).mean()


def _quantile(errors: Tensor, quantile: float) -> Tensor:
    """Return the quantile of each row, `(n, 1)`; `torch.quantile` is limited to 16 million numbers."""
    position = quantile * (errors.shape[1] - 1)
    below = int(position)
    ordered = errors.sort(dim=1).values
    above = ordered[:, min(below + 1, errors.shape[1] - 1)]
    return torch.lerp(ordered[:, below], above, position - below)[:, None]


def root_mse(estimates: Tensor, stems: Tensor) -> Tensor:
    """Average over stems the root of the mean squared error of each, `(b, n, …)`."""
    errors = functional.mse_loss(estimates, stems, reduction="none")
    return (errors.flatten(2).mean(-1) + 1e-8).sqrt().mean()


def spectrum(audio: Tensor) -> Tensor:
    """Return real and imaginary parts of the STFT of `(b, n, s, t)`, `(b, n, s, bin, frame, 2)`."""
    # A window of ones, as in MSST.
    window = torch.ones(4096, device=audio.device)
    transformed = torch.stft(
        audio.flatten(0, 2), 4096, hop_length=1024, window=window, normalized=True, return_complex=True
    )
    return torch.view_as_real(transformed).reshape(*audio.shape[:3], *transformed.shape[1:], 2)


def _multi_stft(arguments: dict[str, Any]) -> Loss:
    compare = _load("multistft_loss", "auraloss.freq", "MultiResolutionSTFTLoss")(**arguments)

    def loss(estimates: Tensor, stems: Tensor, _mixture: Tensor) -> Tensor:
        value: Tensor = compare(estimates.flatten(1, 2), stems.flatten(1, 2))
        return value

    return loss


def _log_wmse(sample_rate: int) -> Loss:
    compare = _load("log_wmse_loss", "torch_log_wmse", "LogWMSELoss")(sample_rate=sample_rate)

    def loss(estimates: Tensor, stems: Tensor, mixture: Tensor) -> Tensor:
        # It expects audio channels before stems.
        value: Tensor = compare(mixture, estimates.transpose(1, 2), stems.transpose(1, 2))
        return value

    return loss


def _of_two(compare: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda estimates, stems, _mixture: compare(estimates, stems)


def _load(name: str, module: str, kind: str) -> Any:
    try:
        return getattr(import_module(module), kind)
    except (ImportError, OSError) as error:  # OSError: a torchaudio that was built for another PyTorch
        raise ImportError(f"losses.{name} needs more packages: {how_to_install('losses')} ({error})") from error

"""What a training configuration says besides the model, in the words of Music-Source-Separation-Training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast, get_type_hints

from hunterFormsBS.choices import METRICS
from hunterFormsBS.training.augmentations import Augmentations, MixtureCodec
from hunterFormsBS.training.datasets import KINDS
from hunterFormsBS.training.losses import NAMES as LOSSES
from hunterFormsBS.training.optimizers import NAMES
from hunterFormsBS.training.unread import explain

SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "audio": ("sample_rate", "chunk_size", "min_mean_abs"),
    "training": (
        "instruments",
        "target_instrument",
        "batch_size",
        "gradient_accumulation_steps",
        "num_epochs",
        "num_steps",
        "optimizer",
        "lr",
        "warmup_steps",
        "num_warmup_steps",
        "scheduler",
        "patience",
        "reduce_factor",
        "weight_decay",
        "grad_clip",
        "not_finite",
        "ema_momentum",
        "use_amp",
        "precision",
        "compile",
        "remix",
        "dataset_type",
        "q",
        "coarse_loss_clip",
        "num_workers",
        "cache",
        "check",
        "seed",
        "log_every",
        "checkpoint_every",
    ),
    "augmentations": (
        "enable",
        "loudness",
        "loudness_min",
        "loudness_max",
        "mixup",
        "mixup_probs",
        "mixup_loudness_min",
        "mixup_loudness_max",
        "chunk_size_augm",
        "chunk_size_min",
        "chunk_size_max",
        "mp3_compression_on_mixture",
        "mp3_compression_on_mixture_bitrate_min",
        "mp3_compression_on_mixture_bitrate_max",
    ),
    "fine_tuning": ("freeze", "train", "heads", "lora"),
    "validation": ("every", "songs", "excerpt", "metrics", "metric_for_best"),
    "inference": ("batch_size", "num_overlap"),
}
"""The settings of each section of a configuration. Fields of `Settings` have the same names but for `FIELDS`."""

FIELDS: Final[Mapping[tuple[str, str], str]] = {
    ("training", "num_warmup_steps"): "warmup_steps",
    ("inference", "batch_size"): "inference_batch_size",
    ("validation", "every"): "validation_every",
    ("validation", "songs"): "validation_songs",
    ("validation", "excerpt"): "validation_excerpt",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train.

    Parameters
    ----------
    instruments : tuple of str
        Stems in the order of the model's heads. `other` or `instrumental` also takes whatever is not named.
    target_instrument : str, optional
        Train a model of one stem for this one.
    sample_rate, chunk_size : int
        Of the songs, in Hz, and of a training segment, in samples.
    min_mean_abs : float
        A remixed stem quieter than this is drawn again, ten times at most.
    batch_size, gradient_accumulation_steps : int
        Segments that a process takes at a time, and how many times it does so for each update of the weights.
    num_epochs, num_steps : int
        Their product is the number of batches of the whole run.
    optimizer : str
        See `hunterFormsBS.training.optimizers`.
    optimizer_arguments : mapping
        The section `optimizer`: its further arguments.
    lr, weight_decay : float
        Peak learning rate, and decay of matrices; biases and gains are not decayed.
    warmup_steps : int
        Updates in which the learning rate rises to `lr`; then it falls to zero along a cosine.
    grad_clip : float
        Largest norm of the gradient; 0 leaves it as it is.
    not_finite : {'stop', 'skip'}
        What to do when a loss is not finite: stop and name the files, or leave the update out and count it.
    ema_momentum : float
        Of the averaged weights, which are validated and saved; 0 takes the weights as they are.
    precision : str, optional
        `32-true`, `bf16-mixed` or `16-mixed`. None: as `use_amp` says.
    use_amp : bool
        bfloat16 on a GPU, float32 on a CPU.
    compile : bool or str
        Compile the transformers; a string names the backend of `torch.compile`.
    remix : float
        Probability of taking each stem of a segment from another place of another song.
    dataset_type : int, optional
        What the data are and how stems are drawn, see `hunterFormsBS.training.datasets`. It sets `remix`,
        unless that is stated.
    losses : mapping
        The section `losses`: for each its weight. See `hunterFormsBS.training.losses`. `q` and `coarse_loss_clip` are
        settings of the masked losses, and `loss_multistft` holds the arguments of `multistft_loss`.
    scheduler : str, optional
        What the learning rate does after it has risen: `cosine`, `linear_scheduler`, which falls to zero in a line,
        `constant`, or `ReduceLROnPlateau`, which multiplies it by `reduce_factor` when the metric was no better than
        before in more than `patience` validations. By default the last where `patience` is stated, else the first.
    enable, loudness : bool
        `enable` is for all augmentations. `loudness` scales each stem by a random factor between `loudness_min` and
        `loudness_max`.
    effects : mapping
        Further augmentations, for `all` and by stem; see `hunterFormsBS.training.augmentations`.
    mixup : bool
        Add other stems of the same instrument to one that is drawn by itself, each with one of `mixup_probs`, scaled
        by random factors between `mixup_loudness_min` and `mixup_loudness_max`.
    chunk_size_augm : bool
        Give each batch a random length between `chunk_size_min` and `chunk_size_max`.
    mp3_compression_on_mixture : float
        Probability of compressing the mixture alone.
    metrics : tuple of str
        What is measured in validation; see `hunterFormsBS.training.metrics`.
    metric_for_best : str
        The one of `metrics` that chooses `best.ckpt`.
    num_workers : int
        Processes that read songs, for each process that trains.
    cache : str, optional
        Folder for decoded audio; see `hunterFormsBS.training.cache`. None: files are decoded again and again.
    check : bool
        Look for what is wrong with the songs before the first update; see `hunterFormsBS.training.checking`.
    seed : int
        Of everything random.
    log_every, checkpoint_every, validation_every : int
        Updates between entries of the log, files to resume from, and validations.
    freeze, train : tuple of str
        Patterns of the names of parameters: those that match `freeze` and not `train` stay as they are.
    heads : mapping, optional
        For each stem the head of the checkpoint that it starts from; see `hunterFormsBS.training.starting`.
    lora : mapping, optional
        Arguments of `peft.LoraConfig`: train low-rank adapters instead of the weights.
    validation_songs : int, optional
        How many songs to validate on; all by default.
    validation_excerpt : float
        Seconds of audio and pictures in the log.
    inference_batch_size, num_overlap : int
        See `hunterFormsBS.separation.separate`.
    """

    instruments: tuple[str, ...]
    target_instrument: str | None = None
    sample_rate: int = 44100
    chunk_size: int
    min_mean_abs: float = 0.0
    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    num_epochs: int = 1
    num_steps: int
    optimizer: str = "adamw"
    optimizer_arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    lr: float
    weight_decay: float = 0.0
    warmup_steps: int = 0
    grad_clip: float = 0.0
    not_finite: str = "stop"
    ema_momentum: float = 0.999
    precision: str | None = None
    use_amp: bool = True
    compile: bool | str = False
    scheduler: str | None = None
    patience: int | None = None
    reduce_factor: float = 0.95
    dataset_type: int | None = None
    losses: Mapping[str, float] = field(default_factory=lambda: {"model": 1.0})
    q: float = 0.95
    coarse_loss_clip: bool = False
    loss_multistft: Mapping[str, Any] = field(default_factory=dict[str, Any])
    remix: float | None = None
    enable: bool = True
    loudness: bool = False
    loudness_min: float = 1.0
    loudness_max: float = 1.0
    effects: Mapping[str, Any] = field(default_factory=dict[str, Any])
    mixup: bool = False
    mixup_probs: tuple[float, ...] = ()
    mixup_loudness_min: float = 1.0
    mixup_loudness_max: float = 1.0
    chunk_size_augm: bool = False
    chunk_size_min: int | None = None
    chunk_size_max: int | None = None
    mp3_compression_on_mixture: float = 0.0
    mp3_compression_on_mixture_bitrate_min: float = 32.0
    mp3_compression_on_mixture_bitrate_max: float = 320.0
    num_workers: int = 2
    cache: str | None = None
    check: bool = True
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    validation_every: int = 2000
    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    heads: Mapping[str, int | None] | None = None
    lora: Mapping[str, Any] | None = None
    validation_songs: int | None = None
    validation_excerpt: float = 6.0
    metrics: tuple[str, ...] = ("sdr",)
    metric_for_best: str = "sdr"
    inference_batch_size: int = 1
    num_overlap: int = 2

    def __post_init__(self) -> None:
        for name in ("chunk_size", "batch_size", "gradient_accumulation_steps", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")
        if self.optimizer not in NAMES:
            raise ValueError(f"optimizer={self.optimizer!r} is unknown: choose one of {', '.join(NAMES)}")
        if self.not_finite not in ("stop", "skip"):
            raise ValueError(f"not_finite={self.not_finite!r} must be 'stop' or 'skip'")
        if self.scheduler not in (None, *SCHEDULERS):
            raise ValueError(f"scheduler={self.scheduler!r} is unknown: choose one of {', '.join(SCHEDULERS)}")
        if self.dataset_type not in (None, *KINDS):
            raise ValueError(
                f"dataset_type={self.dataset_type} is not read: take 4 for 5, which visits every place once, and give "
                "each song files for all stems, silent ones too, in place of 7"
            )
        for name, known, chosen in (("losses", LOSSES, self.losses), ("metrics", METRICS, self.metrics)):
            if unknown := [each for each in chosen if each not in known]:
                raise ValueError(f"{name} has {unknown[0]!r}, which is unknown: choose from {', '.join(known)}")
            if not chosen:
                raise ValueError(f"{name} is empty: name at least one")
        if self.metric_for_best not in self.metrics:
            raise ValueError(
                f"metric_for_best={self.metric_for_best!r} is none of metrics={list(self.metrics)}: add it"
            )
        if (
            self.chunk_size_augm
            and not 1 <= (self.chunk_size_min or 0) <= (self.chunk_size_max or 0) <= self.chunk_size
        ):
            raise ValueError(
                f"chunk_size_min={self.chunk_size_min} and chunk_size_max={self.chunk_size_max} must be two lengths in "
                f"order, audio.chunk_size={self.chunk_size} at most"
            )
        self.augment()  # refuses what is wrong before anything is read
        if self.updates < 1:
            raise ValueError(
                f"num_epochs={self.num_epochs} times num_steps={self.num_steps} is fewer batches than "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}: there would be no update"
            )
        if self.target_instrument is not None and self.target_instrument not in self.instruments:
            raise ValueError(f"target_instrument={self.target_instrument!r} is none of instruments={self.instruments}")
        if self.train and not self.freeze:
            raise ValueError(f"train={list(self.train)} has no meaning without freeze: add freeze: ['*']")
        if self.lora is not None and self.freeze:
            raise ValueError("lora freezes all weights: remove freeze, and name what to train in lora.modules_to_save")

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the model's stems."""
        return self.instruments if self.target_instrument is None else (self.target_instrument,)

    @property
    def updates(self) -> int:
        """How often the weights are updated in the whole run."""
        return self.num_epochs * self.num_steps // self.gradient_accumulation_steps

    @property
    def gains(self) -> tuple[float, float]:
        """Smallest and largest random factor of a stem."""
        return (self.loudness_min, self.loudness_max) if self.enable and self.loudness else (1.0, 1.0)

    @property
    def probability_of_remixing(self) -> float:
        """`remix`, or what the type of the data says."""
        if self.remix is not None:
            return self.remix
        return 0.5 if self.dataset_type is None else KINDS[self.dataset_type].remix

    @property
    def schedule(self) -> str:
        """`scheduler`, or its default."""
        return self.scheduler or ("cosine" if self.patience is None else "ReduceLROnPlateau")

    @property
    def own_mixture(self) -> bool:
        """Whether a mixture is read from its own file."""
        return self.dataset_type is not None and KINDS[self.dataset_type].own_mixture

    @property
    def lengths(self) -> tuple[int, int] | None:
        """Bounds of a random length of segments, if it is random."""
        if not self.enable or not self.chunk_size_augm or not self.chunk_size_min or not self.chunk_size_max:
            return None
        return self.chunk_size_min, self.chunk_size_max

    def augment(self) -> Augmentations | None:
        """Make the effects of stems, if there are any."""
        return Augmentations(self.effects, self.sample_rate) if self.enable and self.effects else None

    def mixture_codec(self) -> MixtureCodec | None:
        """Make the effect of mixtures, if there is one."""
        if not self.enable or self.mp3_compression_on_mixture <= 0:
            return None
        bounds = (self.mp3_compression_on_mixture_bitrate_min, self.mp3_compression_on_mixture_bitrate_max)
        return MixtureCodec(self.mp3_compression_on_mixture, bounds, self.sample_rate)


SCHEDULERS: Final = ("cosine", "linear_scheduler", "constant", "ReduceLROnPlateau")


def settings_from(configuration: Mapping[str, Any]) -> Settings:
    """Take the settings out of a configuration, and warn of those that this program does not have.

    Raises
    ------
    ValueError
        If a setting is missing, or has a value that cannot be used.
    """
    values: dict[str, Any] = {}
    unused: dict[str, Any] = {}
    for section, content in configuration.items():
        if section in ("model", "upstream"):
            continue
        if section == "optimizer":
            values["optimizer_arguments"] = dict(content or {})
            continue
        if section in ("losses", "loss_multistft"):
            values[section] = {
                name: _weight(name, value) if section == "losses" else value for name, value in content.items()
            }
            continue
        if not isinstance(content, Mapping):
            unused[section] = content
            continue
        settings = cast("Mapping[str, Any]", content)
        known = SECTIONS.get(section, ())
        for name, value in settings.items():
            if section == "augmentations" and isinstance(value, Mapping):
                values.setdefault("effects", {})[name] = value
            elif name in known:
                values[FIELDS.get((section, name), name)] = value
            else:
                unused[f"{section}.{name}"] = value
    for name, instead in explain(unused).items():
        warnings.warn(f"{name:.80} has no effect here: {instead}", stacklevel=2)
    needed = ("instruments", "chunk_size", "num_steps", "lr")
    if missing := [name for name in needed if values.get(name) is None]:
        raise ValueError(f"the configuration lacks {', '.join(missing)}: see examples/train.yaml")
    for name in ("instruments", "freeze", "train", "metrics"):
        if name in values:
            values[name] = _names(name, values[name])
    if "mixup_probs" in values:
        values["mixup_probs"] = tuple(_weight("mixup_probs", value) for value in values["mixup_probs"])
    return Settings(**{name: _number(name, value) for name, value in values.items()})


def _names(name: str, value: Any) -> tuple[str, ...]:
    names = tuple(cast("Sequence[object]", value)) if isinstance(value, (list, tuple)) else None
    if names is None or not all(isinstance(each, str) for each in names):
        raise ValueError(f"{name}={value!r} must be a list of names")
    return cast("tuple[str, ...]", names)


def _weight(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} has {value!r}, which must be a number")
    return float(value)


def _number(name: str, value: Any) -> Any:
    """Accept `1e-5`, which YAML reads as text, and refuse values of the wrong type."""
    wanted = get_type_hints(Settings)[name]
    if wanted is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        return float(value)
    if wanted in (int, float, bool) and not isinstance(value, wanted):
        raise ValueError(f"{name}={value!r} must be {wanted.__name__}")
    return value

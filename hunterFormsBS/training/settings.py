"""Settings of a training, apart from the model, with types, bounds and contradictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from hunterFormsBS.choices import METRICS, PRECISIONS
from hunterFormsBS.training.augmentations import Augmentations, MixtureCodec
from hunterFormsBS.training.bounds import MOST, Stated, check
from hunterFormsBS.training.datasets import KINDS
from hunterFormsBS.training.losses import NAMES as LOSSES
from hunterFormsBS.training.optimizers import NAMES

LOGGERS: Final = ("tensorboard", "wandb")
SCHEDULERS: Final = ("cosine", "linear_scheduler", "constant", "ReduceLROnPlateau")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a training.

    Parameters
    ----------
    instruments : tuple of str
        Stems in the order of the model's heads. `other` or `instrumental` also takes all files that are not named.
    target_instrument : str, default None
        Train a model of only this stem.
    sample_rate, chunk_size : int
        Of the songs, in Hz; of a training segment, in samples.
    min_mean_abs : float
        A remixed stem that is quieter is drawn again, at most ten times.
    batch_size, gradient_accumulation_steps : int
        Segments per process and batch; batches per update.
    num_epochs, num_steps : int
        Their product is the number of batches in the run.
    as_msst : bool
        Count and decay as Music-Source-Separation-Training does: see `hunterFormsBS.training.sections`.
    optimizer : str
        See `hunterFormsBS.training.optimizers`.
    optimizer_arguments : mapping
        The section `optimizer`: its further arguments.
    lr, weight_decay : float
        Peak learning rate, and decay of matrices; biases and gains are not decayed. None: no decay; with `as_msst` the
        optimizer's default, for all parameters.
    warmup_steps : int
        Updates in which the learning rate rises to `lr`; then `scheduler` applies.
    grad_clip : float
        Largest norm of the gradient; 0: no clipping.
    not_finite : {'stop', 'skip'}
        If a loss is not finite: stop and name the files, or skip the update and count it.
    ema_momentum : float
        Of the averaged weights, which are validated and saved; 0: no averaging.
    precision : str, default None
        `32-true`, `bf16-mixed` or `16-mixed`. None: by `use_amp`.
    use_amp : bool
        bfloat16 on a GPU, float32 on a CPU.
    compile : bool or str
        Compile the transformers; a string is a backend of `torch.compile`.
    remix : float
        Probability of taking each stem of a segment from another song and offset.
    dataset_type : int, default None
        Type of the dataset, which also sets the default of `remix`; see `hunterFormsBS.training.datasets`.
    losses : mapping
        The section `losses`, with weights; see `hunterFormsBS.training.losses`. `q` and `coarse_loss_clip` are for the
        masked losses; `loss_multistft` holds arguments of `multistft_loss`.
    scheduler : str, default None
        The learning rate after the warm-up: `cosine`; `linear_scheduler`, a linear fall to zero; `constant`; or
        `ReduceLROnPlateau`, which multiplies it by `reduce_factor` after more than `patience` validations without
        improvement. None: the last if `patience` is stated, else the first.
    enable, loudness : bool
        `enable` turns all augmentations on or off. `loudness` scales each stem by a random factor between
        `loudness_min` and `loudness_max`.
    effects : mapping
        Further augmentations, for `all` and by stem; see `hunterFormsBS.training.augmentations`.
    mixup : bool
        Add other stems of the same instrument to an independently drawn one, each with one of `mixup_probs`, scaled by
        random factors between `mixup_loudness_min` and `mixup_loudness_max`.
    chunk_size_augm : bool
        Give each batch a random length between `chunk_size_min` and `chunk_size_max`.
    mp3_compression_on_mixture : float
        Probability of compressing only the mixture.
    metrics : tuple of str
        Metrics of the validation; see `hunterFormsBS.training.metrics`.
    metric_for_best : str
        The one of `metrics` that chooses `best.ckpt`.
    num_workers : int
        Workers that read songs, per training process.
    cache : str, default None
        Folder for decoded audio; see `hunterFormsBS.training.cache`. None: files are decoded at every use.
    check : bool
        Check the songs before the first update; see `hunterFormsBS.training.checking`.
    rehearse : bool
        Before the run, try and undo an update, a validation of one chunk and a save.
    seed : int
        Seed of all randomness.
    logger : {'tensorboard', 'wandb'}
        Where numbers, sounds and pictures go; see `hunterFormsBS.training.loggers`.
    log_every, checkpoint_every, validation_every : int
        Updates between log entries, states, and validations.
    freeze, train : tuple of str
        Patterns of parameter names: parameters that match `freeze` and not `train` are not trained.
    heads : mapping, default None
        For each stem, the checkpoint's head to start from; see `hunterFormsBS.training.starting`.
    lora : mapping, default None
        Arguments of `peft.LoraConfig`: train low-rank adapters instead of the weights.
    validation_songs : int, default None
        Number of songs to validate on; None: all.
    validation_excerpt : float
        Seconds of audio and pictures in the log.
    inference_batch_size, num_overlap : int
        See `hunterFormsBS.separation.separate`.
    """

    instruments: Annotated[tuple[str, ...], Stated("training")]
    target_instrument: Annotated[str | None, Stated("training")] = None
    sample_rate: Annotated[int, Stated("audio", at_least=1, at_most=768_000)] = 44100
    chunk_size: Annotated[int, Stated("audio", at_least=1, at_most=10**9)]
    min_mean_abs: Annotated[float, Stated("audio", at_least=0, at_most=1)] = 0.0
    batch_size: Annotated[int, Stated("training", at_least=1, at_most=10**6)] = 1
    gradient_accumulation_steps: Annotated[int, Stated("training", at_least=1, at_most=10**6)] = 1
    num_epochs: Annotated[int, Stated("training", at_least=1, at_most=MOST)] = 1
    num_steps: Annotated[int, Stated("training", at_least=1, at_most=MOST)]
    as_msst: bool = False
    optimizer: Annotated[str, Stated("training", one_of=NAMES)] = "adamw"
    optimizer_arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    lr: Annotated[float, Stated("training", above=0, at_most=100)]
    weight_decay: Annotated[float | None, Stated("training", at_least=0, at_most=100)] = None
    warmup_steps: Annotated[int, Stated("training", ("warmup_steps", "num_warmup_steps"), at_least=0, at_most=MOST)] = 0
    grad_clip: Annotated[float, Stated("training", at_least=0, at_most=10**9)] = 0.0
    not_finite: Annotated[str, Stated("training", one_of=("stop", "skip"))] = "stop"
    ema_momentum: Annotated[float, Stated("training", at_least=0, below=1)] = 0.999
    precision: Annotated[str | None, Stated("training", one_of=PRECISIONS)] = None
    use_amp: Annotated[bool, Stated("training")] = True
    compile: Annotated[bool | str, Stated("training")] = False
    scheduler: Annotated[str | None, Stated("training", one_of=SCHEDULERS)] = None
    patience: Annotated[int | None, Stated("training", at_least=0, at_most=MOST)] = None
    reduce_factor: Annotated[float, Stated("training", above=0, below=1)] = 0.95
    dataset_type: Annotated[int | None, Stated("training")] = None
    losses: Annotated[Mapping[str, float], Stated("losses", at_least=0, at_most=10**9)] = field(
        default_factory=lambda: {"model": 1.0}
    )
    q: Annotated[float, Stated("training", above=0, at_most=1)] = 0.95
    coarse_loss_clip: Annotated[bool, Stated("training")] = False
    loss_multistft: Mapping[str, Any] = field(default_factory=dict[str, Any])
    remix: Annotated[float | None, Stated("training", at_least=0, at_most=1)] = None
    enable: Annotated[bool, Stated("augmentations")] = True
    loudness: Annotated[bool, Stated("augmentations")] = False
    loudness_min: Annotated[float, Stated("augmentations", at_least=0, at_most=1000)] = 1.0
    loudness_max: Annotated[float, Stated("augmentations", above=0, at_most=1000)] = 1.0
    effects: Mapping[str, Any] = field(default_factory=dict[str, Any])
    mixup: Annotated[bool, Stated("augmentations")] = False
    mixup_probs: Annotated[tuple[float, ...], Stated("augmentations", at_least=0, at_most=1)] = ()
    mixup_loudness_min: Annotated[float, Stated("augmentations", at_least=0, at_most=1000)] = 1.0
    mixup_loudness_max: Annotated[float, Stated("augmentations", above=0, at_most=1000)] = 1.0
    chunk_size_augm: Annotated[bool, Stated("augmentations")] = False
    chunk_size_min: Annotated[int | None, Stated("augmentations", at_least=1, at_most=10**9)] = None
    chunk_size_max: Annotated[int | None, Stated("augmentations", at_least=1, at_most=10**9)] = None
    mp3_compression_on_mixture: Annotated[float, Stated("augmentations", at_least=0, at_most=1)] = 0.0
    mp3_compression_on_mixture_bitrate_min: Annotated[float, Stated("augmentations", at_least=1, at_most=1000)] = 32.0
    mp3_compression_on_mixture_bitrate_max: Annotated[float, Stated("augmentations", at_least=1, at_most=1000)] = 320.0
    num_workers: Annotated[int, Stated("training", at_least=0, at_most=1024)] = 2
    cache: Annotated[str | None, Stated("training")] = None
    check: Annotated[bool, Stated("training")] = True
    rehearse: Annotated[bool, Stated("training")] = True
    seed: Annotated[int, Stated("training", at_least=0, below=2**63)] = 0
    logger: Annotated[str, Stated("training", one_of=LOGGERS)] = "tensorboard"
    log_every: Annotated[int, Stated("training", at_least=1, at_most=MOST)] = 10
    checkpoint_every: Annotated[int, Stated("training", at_least=1, at_most=MOST)] = 500
    validation_every: Annotated[int, Stated("validation", ("every",), at_least=1, at_most=MOST)] = 2000
    freeze: Annotated[tuple[str, ...], Stated("fine_tuning")] = ()
    train: Annotated[tuple[str, ...], Stated("fine_tuning")] = ()
    heads: Annotated[Mapping[str, int | None] | None, Stated("fine_tuning", at_least=0, at_most=10**6)] = None
    lora: Annotated[Mapping[str, Any] | None, Stated("fine_tuning")] = None
    validation_songs: Annotated[int | None, Stated("validation", ("songs",), at_least=1, at_most=MOST)] = None
    validation_excerpt: Annotated[float, Stated("validation", ("excerpt",), above=0, at_most=3600)] = 6.0
    metrics: Annotated[tuple[str, ...], Stated("validation")] = ("sdr",)
    metric_for_best: Annotated[str, Stated("validation")] = "sdr"
    inference_batch_size: Annotated[int, Stated("inference", ("batch_size",), at_least=1, at_most=10**6)] = 1
    num_overlap: Annotated[int, Stated("inference", at_least=1, at_most=1000)] = 2

    def __post_init__(self) -> None:
        check(self)
        self._check_names()
        self._check_pairs()
        self._check_data()
        self.augment()  # refuses invalid effects before anything is read
        self.mixture_codec()

    def _check_names(self) -> None:
        """Refuse unknown, missing and duplicate names."""
        for name, known, chosen in (("losses", LOSSES, self.losses), ("metrics", METRICS, self.metrics)):
            if unknown := [each for each in chosen if each not in known]:
                raise ValueError(f"{name} has {unknown[0]!r}, which is unknown: choose from {', '.join(known)}")
        for name in ("instruments", "losses", "metrics"):
            chosen = tuple(getattr(self, name))
            if not chosen:
                raise ValueError(f"{name} is empty: name at least one")
            if len({each.casefold() for each in chosen}) < len(chosen):
                raise ValueError(f"{name}={list(chosen)} has a name twice: remove one")
        if not any(self.losses.values()):
            raise ValueError(f"losses={dict(self.losses)} weighs all with 0: give one a weight")
        if self.metric_for_best not in self.metrics:
            raise ValueError(
                f"metric_for_best={self.metric_for_best!r} is none of metrics={list(self.metrics)}: add it"
            )
        if self.target_instrument is not None and self.target_instrument not in self.instruments:
            raise ValueError(f"target_instrument={self.target_instrument!r} is none of instruments={self.instruments}")

    def _check_pairs(self) -> None:
        """Refuse settings that contradict each other."""
        for name in ("loudness", "mixup_loudness", "mp3_compression_on_mixture_bitrate"):
            low, high = (getattr(self, f"{name}_{end}") for end in ("min", "max"))
            if low > high:
                raise ValueError(f"{name}_min={low} is more than {name}_max={high}: exchange them")
        if (
            self.chunk_size_augm
            and not 1 <= (self.chunk_size_min or 0) <= (self.chunk_size_max or 0) <= self.chunk_size
        ):
            raise ValueError(
                f"chunk_size_min={self.chunk_size_min} and chunk_size_max={self.chunk_size_max} must be two lengths in "
                f"order, audio.chunk_size={self.chunk_size} at most"
            )
        if self.updates < 1:
            raise ValueError(
                f"num_epochs={self.num_epochs} times num_steps={self.num_steps} is fewer batches than "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}: there would be no update"
            )
        if self.warmup_steps and self.warmup_steps >= self.updates:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} is not less than the {self.updates} updates of the run, so that lr "
                "is never reached: lower it, or raise num_epochs or num_steps"
            )
        if self.train and not self.freeze:
            raise ValueError(f"train={list(self.train)} has no meaning without freeze: add freeze: ['*']")
        if self.lora is not None and self.freeze:
            raise ValueError("lora freezes all weights: remove freeze, and name what to train in lora.modules_to_save")

    def _check_data(self) -> None:
        """Refuse settings that have no meaning, or would be wrong, for the type of the dataset."""
        if self.dataset_type is None:
            return
        if self.dataset_type not in KINDS:
            raise ValueError(
                f"dataset_type={self.dataset_type} is not read: take 4 for 5, which visits every offset once, and give "
                "each song files for all stems, silent ones too, in place of 7"
            )
        if KINDS[self.dataset_type].single_files and self.probability_of_remixing < 1:
            raise ValueError(
                f"remix={self.remix} would leave most segments of dataset_type={self.dataset_type} with one stem, as "
                "its files belong to no songs: leave remix out"
            )
        if self.own_mixture and self.enable and self.effects:
            raise ValueError(
                f"augmentations has {', '.join(self.effects)}, which change stems, and with "
                f"dataset_type={self.dataset_type} the mixture is the song's own: remove them, or say dataset_type: 4"
            )

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the model's stems."""
        return self.instruments if self.target_instrument is None else (self.target_instrument,)

    @property
    def updates(self) -> int:
        """Number of updates in the run."""
        return self.updates_in(self.num_epochs)

    def updates_in(self, epochs: int) -> int:
        """Return the number of updates in epochs of `num_steps` batches.

        With `as_msst` each epoch ends with an update, even if it has fewer batches.
        """
        if self.as_msst:
            return epochs * -(-self.num_steps // self.gradient_accumulation_steps)
        return epochs * self.num_steps // self.gradient_accumulation_steps

    def epochs_in(self, updates: int) -> int:
        """Return the number of whole epochs in some updates."""
        if self.as_msst:
            return updates // self.updates_in(1)
        return updates * self.gradient_accumulation_steps // self.num_steps

    @property
    def gains(self) -> tuple[float, float]:
        """Smallest and largest random factor of a stem."""
        return (self.loudness_min, self.loudness_max) if self.enable and self.loudness else (1.0, 1.0)

    @property
    def probability_of_remixing(self) -> float:
        """`remix`, or the default of the dataset's type."""
        if self.remix is not None:
            return self.remix
        return 0.5 if self.dataset_type is None else KINDS[self.dataset_type].remix

    @property
    def schedule(self) -> str:
        """`scheduler`, or its default."""
        return self.scheduler or ("cosine" if self.patience is None else "ReduceLROnPlateau")

    @property
    def own_mixture(self) -> bool:
        """Whether mixtures are read from their own files."""
        return self.dataset_type is not None and KINDS[self.dataset_type].own_mixture

    @property
    def lengths(self) -> tuple[int, int] | None:
        """Bounds of a random length of segments, if it is random."""
        if not self.enable or not self.chunk_size_augm or not self.chunk_size_min or not self.chunk_size_max:
            return None
        return self.chunk_size_min, self.chunk_size_max

    def augment(self) -> Augmentations | None:
        """Make the effects on stems, if any."""
        return Augmentations(self.effects, self.sample_rate) if self.enable and self.effects else None

    def mixture_codec(self) -> MixtureCodec | None:
        """Make the effect on mixtures, if any."""
        if not self.enable or self.mp3_compression_on_mixture <= 0:
            return None
        bounds = (self.mp3_compression_on_mixture_bitrate_min, self.mp3_compression_on_mixture_bitrate_max)
        return MixtureCodec(self.mp3_compression_on_mixture, bounds, self.sample_rate)

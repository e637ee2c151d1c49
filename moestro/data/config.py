"""What to read, how to divide it, and which vocabulary to use. Knows no files. Next: corpus.py."""

from dataclasses import dataclass

from moestro.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text of a run."""

    paths: tuple[str, ...] = ("python",)
    """Folders, text, JSON lines or parquet, each also as .gz; `python` is this interpreter's own
    library.
    Limits: at least one."""
    domains: tuple[str, ...] = ()
    """One name per path, or none: then the kind of file names it."""
    held_out: float = 0.05
    """Share of documents that are never trained on. Limits: above 0, at most 0.5."""
    fim_rate: float = 0.0
    """Share of documents told as fill-in-the-middle, so that an editor can use the model.
    Limits: 0 to 1."""
    fim_bytes: int = 800
    """Longest fill-in-the-middle example in bytes, so that prefix, suffix and middle meet in one
    window; 0: whole documents.
    Limits: 0, or 16 or more."""
    min_bytes: int = 32
    """Documents of fewer bytes are left out. Limits: 1 or more."""
    max_document_bytes: int = 1_000_000
    """A document above so many bytes is cut at line ends.
    Limits: 1024 or more, not below `min_bytes`."""
    max_bytes: int | None = None
    """Of a corpus above so many bytes a sample is used; none uses all. Limits: 1 or more."""
    seed: int = 0
    """Decides which documents are held out, sampled and told as fill-in-the-middle.
    Limits: 0 or more."""

    def __post_init__(self) -> None:
        """Refuse shares and sizes that no corpus can meet."""
        if not self.paths or "" in self.paths:
            raise ConfigError("paths is empty: name a folder or a file of text, or python")
        if self.domains and len(self.domains) != len(self.paths):
            raise ConfigError(
                f"domains has {len(self.domains)} names for {len(self.paths)} paths: give one"
                " each, or none"
            )
        if not 0 < self.held_out <= 0.5:
            raise ConfigError(f"held_out is {self.held_out}: it must be above 0 and at most 0.5")
        if not 0 <= self.fim_rate <= 1:
            raise ConfigError(f"fim_rate is {self.fim_rate}: it must lie between 0 and 1")
        if self.fim_bytes != 0 and self.fim_bytes < 16:
            raise ConfigError(f"fim_bytes is {self.fim_bytes}: it must be 16 or more, or 0")
        if self.min_bytes < 1:
            raise ConfigError(f"min_bytes is {self.min_bytes}: it must be 1 or more")
        if self.max_document_bytes < max(1024, self.min_bytes):
            raise ConfigError(
                f"max_document_bytes is {self.max_document_bytes}: it must be 1024 or more,"
                f" and not below min_bytes, {self.min_bytes}"
            )
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ConfigError(f"max_bytes is {self.max_bytes}: leave it out to use all the text")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A vocabulary learned from the text, or one that there is."""

    vocab_size: int = 2048
    """Tokens to learn; follows `model.vocab_size` where only that is given.
    Limits: 260 or more, at most `model.vocab_size`."""
    path: str | None = None
    """A tokenizer.json or its folder, taken instead of learning one."""
    sample_bytes: int = 16_000_000
    """Bytes of the text that the vocabulary is learned from. Limits: 1 or more."""

    def __post_init__(self) -> None:
        """Refuse a vocabulary too small for its bytes."""
        if self.vocab_size < 260:
            raise ConfigError(
                f"vocab_size is {self.vocab_size}: bytes and special tokens alone take 260"
            )
        if self.path == "":
            raise ConfigError("path is empty: name a tokenizer.json or its folder, or leave it out")
        if self.sample_bytes < 1:
            raise ConfigError(f"sample_bytes is {self.sample_bytes}: it must be 1 or more")

"""HarvestConfig: everything that decides what is harvested, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ..errors import ModelError, SplinterpError, TextError
from ..store.places import AnyPath, place
from .hooks import HOOKS, site_name
from .selection import parse_positions

EMBEDDED = "tiny"
EMBEDDED_LAYER = 2
STORE_DTYPES = ("bfloat16", "float16", "float32")
SEPARATORS = ("bos", "eos", "none")
PACKINGS = ("packed", "document")
# The Pile without its copyrighted parts: plain .jsonl.zst files, no loading script, and what SAE papers commonly use.
HUB_DATASET = "monology/pile-uncopyrighted"


class HarvestSettings(TypedDict, total=False):
    """What `splinterp.harvest` takes besides model, layers, hooks and dataset: fields of `HarvestConfig`, by their names."""

    tokens: int
    out: AnyPath
    split: str
    text_column: str
    tokens_column: str | None
    context: int
    packing: str
    batch_size: int | None
    dtype: str
    model_dtype: str
    compile: bool
    device: str
    seed: int
    keep_bos: bool
    skip_tokens: tuple[int, ...]
    skip_special: bool
    positions: str | None
    every: int
    drop_outliers: float | None
    separator: str
    revision: str | None
    trust_remote_code: bool
    memory: int
    resume: bool
    force: bool


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """What to harvest, from what, into which store.

    Raises:
        SplinterpError: a value that cannot be, naming it and what may stand there.
    """

    tokens: int = 1_000_000
    """Rows a site in the store, exactly; rows left out (BOS, separators) do not count."""
    layers: tuple[int, ...] = ()
    """Blocks to harvest at, counted from 0; all in one forward pass. Kept sorted, without repetitions. Of the embedded model, if none
    is named, the third of its four."""
    out: AnyPath = Path("acts.zarr")
    """The store to write."""
    model: str = EMBEDDED
    """"tiny", a Hugging Face directory, or a TransformerLens or hub name."""
    hooks: tuple[str, ...] = ("resid_post",)
    """Where in each of the blocks: names of `HOOKS`, all in one forward pass. Kept in its order, without repetitions."""
    dataset: str | tuple[str, ...] | None = None
    """"stdlib", a file (.txt, .jsonl, either with .gz or .zst, .parquet, .npy), a directory, or a hub data set (`org/name` or
    `org/name:configuration`). A tuple is a mixture of several, each with a weight behind it (`name::0.3`; 1 where none is
    given), interleaved by `seed` in proportion of documents.
    None: "stdlib" for the embedded model, a well-known hub data set for any other."""
    split: str = "train"
    """Split of a hub data set."""
    text_column: str = "text"
    """Column of a hub data set, a .jsonl or a .parquet file that holds the text."""
    tokens_column: str | None = None
    """Column that holds lists of token ids, to be harvested in place of text."""
    context: int = 128
    """Tokens in one packed row of the model's input, BOS included."""
    packing: str = "packed"
    """"packed": documents end to end; "document": one a row, what goes beyond the context left out."""
    batch_size: int | None = None
    """Packed rows a forward pass. None: chosen by context, width and device."""
    dtype: str = "bfloat16"
    """The store's dtype: bfloat16, float16 or float32."""
    model_dtype: str = "auto"
    """The model's dtype. "auto": float32 on a CPU; on a GPU the checkpoint's own half type, or bfloat16."""
    compile: bool = False
    """Compile the model's blocks with torch.compile first."""
    device: str = "auto"
    """"auto" is "cuda" where there is one, else "cpu"."""
    seed: int = 0
    """Seed of the order of rows in the store."""
    keep_bos: bool = False
    """Keep the rows of BOS and separator tokens, which are outliers of little use to an SAE."""
    skip_tokens: tuple[int, ...] = ()
    """Token ids whose rows are left out of the store; they go through the model like any other."""
    skip_special: bool = False
    """Leave out the rows of all of the tokenizer's special tokens as well."""
    positions: str | None = None
    """Positions of the model's input whose rows are stored: "last" (a row's last token of the text), positions and half-open
    ranges (5, a:b, a:, :b), separated by commas; 0 is BOS's place. Kept in order, without repetitions. None: all."""
    every: int = 1
    """Store only the first and every `every`-th after it of the tokens that would be stored otherwise, counted through the whole
    text. Where all rows of the input keep equally many, take a number without a factor in common, or the same positions recur."""
    drop_outliers: float | None = None
    """Leave out rows whose norm at some site is above this many times that site's median norm in the first batch of the text;
    others take their place, except with several ranks."""
    separator: str = "bos"
    """What stands between two documents in a packed row: "bos", "eos" or "none"."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run the Python code that a hub model brings along."""
    memory: int = 2**30
    """Bytes that the store's shuffle pool may take."""
    resume: bool = False
    """Go on with an interrupted harvest at `out`."""
    force: bool = False
    """Replace a store at `out`."""

    def __post_init__(self) -> None:
        layers = self.layers or ((EMBEDDED_LAYER,) if self.model == EMBEDDED else ())
        object.__setattr__(self, "layers", tuple(sorted(set(layers))))
        object.__setattr__(self, "out", place(self.out))
        if not self.layers:
            raise ModelError("No layer to harvest was given; name at least one, for example --layer 2.")
        if self.layers[0] < 0:
            raise ModelError(f"Layers are counted from 0, so {self.layers[0]} is none; name for example --layer 0.")
        if not self.hooks:
            raise ModelError("No hook to harvest at was given; name at least one, for example --hook resid_post.")
        for what, value, choices in (
            *(("hook", hook, tuple(HOOKS)) for hook in self.hooks),
            ("store dtype", self.dtype, STORE_DTYPES),
            ("model dtype", self.model_dtype, ("auto", *STORE_DTYPES)),
            ("separator", self.separator, SEPARATORS),
            ("packing", self.packing, PACKINGS),
        ):
            if value not in choices:
                raise ModelError(f"There is no {what} '{value}'; choose one of {', '.join(choices)}.")
        object.__setattr__(self, "hooks", tuple(hook for hook in HOOKS if hook in self.hooks))
        if self.keep_bos and self.skip_special:
            raise SplinterpError("BOS is a special token, so its rows cannot be both kept and skipped; drop one of the two.")
        if self.context < 2:
            raise TextError(f"A context of {self.context} has no room for text behind BOS; give at least 2.")
        if self.positions is not None:
            object.__setattr__(self, "positions", str(parse_positions(self.positions, self.context, self.keep_bos)))
        if self.drop_outliers is not None and not 1 < self.drop_outliers < math.inf:
            raise SplinterpError(
                f"Outliers are told by a factor above 1 of the median norm, for example 10, not by {self.drop_outliers:g}."
            )
        if self.every < 1:
            raise SplinterpError(f"Of every {self.every} tokens none can be stored; give at least 1.")
        for what, value in (("number of tokens", self.tokens), ("batch size", self.batch_size), ("memory", self.memory)):
            if value is not None and value < 1:
                raise SplinterpError(f"The {what} must be at least 1, not {value}.")
        if self.seed < 0:
            raise SplinterpError(f"The seed must not be negative, but it is {self.seed}.")

    @property
    def datasets(self) -> tuple[str, ...]:
        """The texts to harvest, with the default filled in."""
        chosen = self.dataset or ("stdlib" if self.model == EMBEDDED else HUB_DATASET)
        return chosen if isinstance(chosen, tuple) else (chosen,)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites in the store, by layer and then hook: TransformerLens's hook names."""
        return tuple(site_name(layer, hook) for layer in self.layers for hook in self.hooks)

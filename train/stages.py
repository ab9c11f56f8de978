"""One run: what it finds in its directory, its beginning there, its training, its last solve, and the files that it leaves."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..devices import suitable_threads
from ..errors import SplinterpError
from ..evaluate.metrics import evaluate_rows
from ..quantities import format_bytes
from ..sae import SAE, save_sae
from ..store import Store
from ..store.batches import Split
from ..store.files import Lock, temporary
from .adam import AdamBaseline
from .budget import check_machine, codes_bytes, enough_memory, gram_bytes, memory_budget, solves_by_cg
from .checkpoint import CHECKPOINT, Position, read_checkpoint
from .config import TrainConfig
from .decoder import Penalties
from .dictionary import METHOD as PURSUIT_CODES
from .dictionary import DictionaryLearning, pursued
from .directory import METRICS, RUN, SUMMARY, check_is_run, describe, is_begun, remove_run, resumed, write_json
from .encoder import Weights
from .group import Group
from .in_step import agree, deal
from .last_solve import LastSolve, WithoutGram, last_solve
from .loggers import Logger, MetricsFile, open_logger
from .loop import Progress
from .pam import PAM
from .rows import Rows, raw_rows
from .state import State, part
from .training import Checkpoints, Tell, Training, held_out_rows
from .window import Window


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its SAE (of raw rows), its directory, and its summary (what summary.json holds).

    On other ranks than the first the SAE is that before the last solve, and the summary empty.
    """

    sae: SAE
    directory: Path
    summary: dict[str, Any]


class Run:
    """One run and its directory, stage after stage: find, prepare, begin, (its training's steps), end, finish.

    Within its block it keeps other processes out of the directory from `find` or `begin` on. Of several ranks only the first has one, and
    the others `assist` where it finishes; all go through the other stages together, but for `find`.

    Attributes:
        position: how far it has come. training: from `begin` to `end`, where there are steps to take. checkpoints: from `prepare` on.
        sae: as trained, of normalised rows; None before.
    """

    def __init__(self, rows: Rows, config: TrainConfig, out: Path, tell: Tell) -> None:
        if config.different_rows is None:
            config = replace(config, different_rows=min(config.rows, rows.store.split_rows("train")))
        self.rows, self.config, self.out, self.tell = rows, config, out, tell
        self.position = Position()
        self.training: Training | None = None
        self.sae: SAE | None = None
        self._described = {**describe(rows.store, rows.site, config, rows.device), "ranks": rows.group.world}
        self._begun, self._state = False, dict[str, Tensor]()
        self._method: PAM | AdamBaseline | None = None
        self._logger: Logger | None = None
        self._held = ExitStack()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()

    def find(self) -> None:
        """Take up the run in the directory, if one was begun there.

        Raises:
            SplinterpError: it is another run, a finished one or a damaged one, or the directory is no run's.
        """
        self._begun = is_begun(self.out)
        if self._begun:
            self._lock()
            self._described = resumed(self.out, self._described)
            if (self.out / CHECKPOINT).exists():
                self.position, self._state = read_checkpoint(self.out / CHECKPOINT)

    def prepare(self, checkpoint_every: float, runs: int = 1) -> None:
        """Take the memory, for one of so many `runs` trained together; nothing in the directory changes.

        Raises:
            SplinterpError: there is not enough, the checkpoint is that of something else, or ranks were started differently.
        """
        d_in, device, group = len(self.rows.mean), self.rows.device, self.rows.group
        self.config, self.position = config, position = agree(self.config, self._described, self.position, device, group)
        self.checkpoints = Checkpoints(self.out, checkpoint_every, position, bool(self._state), runs)
        with group.agreed():
            if solves_by_cg(config, device):
                codes_bytes(config, d_in, device)  # refuses a budget that is too small even so
            else:
                check_machine(config, device)
            method = _start(config, d_in, device, group, trained=position.dead is not None)
        found, self._state = part(self._state, "weights") if isinstance(method, Weights) else self._state, {}
        state = deal(found, method, group)
        with group.agreed():
            _load(method, state, self.checkpoints.path)
        window = method.statistics if isinstance(method, PAM) and isinstance(method.statistics, Window) else None
        if solves_by_cg(config, device) and (window or config.last_solve):
            over = f"over the last {window.capacity * group.world:,} rows" if window else "at the end, over all rows"
            self.tell(
                f"The Gram matrix of {config.d_sae:,} latents takes up to {format_bytes(gram_bytes(config))}, more than the "
                f"{format_bytes(memory_budget(config, device))} of --memory: the decoder is solved by conjugate gradients {over}."
            )
        if isinstance(method, Weights):
            self.sae = method.sae()
        else:
            self._method = method

    def begin(self, logger: str, force: bool = False) -> None:
        """Make room in the directory, if need be (`force`), describe the run there, and be ready for its steps."""
        if self.rows.group.first:
            self._describe(logger, force)
        if self.sae:
            self.save(self.sae)
        elif self._method:
            metrics = None
            if self.rows.group.first:
                metrics = MetricsFile(self.out / METRICS, self.position.metrics_bytes)
                self._held.callback(metrics.close)
            self.training = Training(
                self._method, self.rows, self.config, self.position, metrics, self.checkpoints, self.tell, self._logger
            )
            self._method = None

    def end(self) -> None:
        """The steps are done: keep the SAE, and give the memory of the statistics and of the optimiser back. Raises Diverged."""
        assert self.training is not None
        self.sae = self.training.end()
        self.leave()
        self.save(self.sae)  # whatever happens now, this is kept

    def leave(self) -> None:
        """Give the training's memory back."""
        self.training = None

    def save(self, sae: SAE) -> SAE:
        """Leave an SAE of normalised rows in the directory as one of raw rows, which is returned, with all that a file says of its origin."""
        sae = _with_metadata(sae.fold_normalisation(self.rows.mean, self.rows.scale), self.rows.store, self.rows.site)
        if self.rows.group.first:
            save_sae(sae, self.out)
        return sae

    def finish(self, progress: Progress | None = None, stage: str = "last solve") -> TrainResult:
        """The figures of the trained SAE, its last solve (told as `stage`), and the files of a finished run."""
        assert self.sae is not None
        sae, position, seconds, solved, before = self.sae, self.position, {"train": self.position.seconds}, None, None
        with suitable_threads(len(self.rows.mean) * self.config.d_sae, self.rows.device):
            figures = self._evaluate(sae)
            if self.config.last_solve:
                before, started = figures, time.monotonic()
                found = self._last_solve(sae, progress, stage)
                assert found is not None  # on the first rank
                sae, solved = found
                seconds["last_solve"] = time.monotonic() - started
                figures = self._evaluate(sae)
            validation, pursuit = self._validation(sae), self._by_pursuit(sae)
        summary = {
            **figures,
            "encoder": "native",
            "method": self.config.method,
            "steps": position.steps,
            "rows_trained": position.rows,
            "rows_per_second": position.rows / max(position.seconds, 1e-9),
            "dead_in_training": position.dead,
            "seconds": seconds,
            "validation": validation,
            "last_solve": asdict(solved) if solved else None,
            "before_last_solve": before,
            **({"pursuit": pursuit} if pursuit else {}),
        }
        result = TrainResult(self.save(sae), self.out, summary)
        write_json(self.out / SUMMARY, summary)
        for path in (self.checkpoints.path, temporary(self.checkpoints.path)):
            path.unlink(missing_ok=True)
        if self._logger:
            self._logger.finish(summary)
        self.sae = None
        return result

    def assist(self) -> TrainResult:
        """What another rank than the first does for `finish`."""
        assert self.sae is not None
        with suitable_threads(len(self.rows.mean) * self.config.d_sae, self.rows.device):
            if self.config.last_solve:
                self._last_solve(self.sae, None, "")
        return TrainResult(self.save(self.sae), self.out, {})

    def _describe(self, logger: str, force: bool) -> None:
        """`begin`'s part that the first rank does alone, but for the metrics."""
        if not self._begun:
            # Whatever can be refused has been: only now does an old run make room.
            if self.out.exists() and force:
                check_is_run(self.out)
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock()
            if (self.out / RUN).exists():
                remove_run(self.out)
        write_json(self.out / RUN, self._described)
        self._logger = open_logger(logger, self.out, self._described, self.position.steps)
        if self._logger:
            self._held.callback(self._logger.close)

    def _lock(self) -> None:
        """Raises StoreError where another process trains in the directory."""
        lock = Lock(self.out)
        self._held.callback(lock.release, remove=True)

    def _validation(self, sae: SAE) -> dict[str, float | int] | None:
        """Figures to choose settings by: of rows that are neither trained on nor reported. None where the store has none."""
        if not self.rows.store.split_rows("validation"):
            return None
        figures = self._evaluate(sae, "validation")
        return {name: figures[name] for name in ("fvu", "l0", "n_rows")}

    def _by_pursuit(self, sae: SAE) -> dict[str, Any] | None:
        """Figures by the codes that the dictionary was made for, of --method pursuit, on some of the held-out rows."""
        if self.config.method != "pursuit":
            return None
        figures = evaluate_rows(sae, held_out_rows(self.rows), encode=lambda x: pursued(x, sae.W_dec, sae.b_dec, sae.config.k))
        return {"encoder": PURSUIT_CODES, **{name: figures[name] for name in ("fvu", "l0", "n_rows")}}

    def _evaluate(self, sae: SAE, split: Split = "held_out") -> dict[str, float | int]:
        """Figures, in the store's units, of an SAE of normalised rows on all rows of a split."""
        raw = raw_rows(self.rows.store, self.rows.site, self.rows.device, split)
        return evaluate_rows(sae.fold_normalisation(self.rows.mean, self.rows.scale), raw, self.rows.mean)

    def _last_solve(self, sae: SAE, progress: Progress | None, stage: str) -> tuple[SAE, LastSolve] | None:
        group, total, done = self.rows.group, self.rows.store.split_rows("train"), 0

        def tell(n: int) -> None:
            nonlocal done
            done = min(total, done + n * group.world)
            if progress:
                progress(stage, done, total, {})

        c = self.config
        penalties = Penalties(c.alpha, c.beta, c.mu_dec, c.nu_dec)
        device, without_gram = self.rows.device, None
        if solves_by_cg(c, device):
            directory = self.out if self.out.is_dir() else Path(gettempdir())  # on another rank's machine there may be none
            without_gram = WithoutGram(codes_bytes(c, len(self.rows.mean), device), directory)
        validation = self.rows.dealt("validation", 4096) if self.rows.store.split_rows("validation") else None
        with enough_memory(
            c, device, "the SAE as trained is kept, and --resume with a lower --memory goes on with the last solve."
        ):
            return last_solve(sae, self.rows.dealt("train", 4096), penalties, c.ridge, tell, without_gram, group, validation)


def _load(into: PAM | AdamBaseline | Weights, state: State, path: Path) -> None:
    """Take up the state of a checkpoint, if there is one.

    Raises:
        SplinterpError: it is the state of something else.
    """
    if not state:
        return
    for name, own in into.state().items():
        if name not in state or (state[name].shape, state[name].dtype) != (own.shape, own.dtype):
            if name.startswith("statistics."):
                raise SplinterpError(
                    f"{path} has the statistics of a run with another --memory than there is now; give --resume the --memory of before "
                    f"({RUN} tells it: memory)."
                )
            raise SplinterpError(f"{path} does not fit this version of splinterp ({name}); start the run again with --force.")
    into.load_state(state)


def _start(config: TrainConfig, d_in: int, device: torch.device, group: Group, trained: bool) -> PAM | AdamBaseline | Weights:
    """The method's state, or the weights alone where it has done its work; a sentence where there is not the memory for it."""
    with enough_memory(config, device, "lower --memory or use fewer --latents."):
        if trained:
            return Weights(d_in, config, device, group)
        return METHODS[config.method](d_in, config, device, group)


METHODS: dict[str, type[PAM] | type[AdamBaseline]] = {"pam": PAM, "adam": AdamBaseline, "pursuit": DictionaryLearning}


def _with_metadata(sae: SAE, store: Store, site: str) -> SAE:
    a = store.attributes
    metadata = {
        "model_name": a.get("model"),
        "hook_name": site,
        "context_size": a.get("context"),
        "prepend_bos": a.get("prepend_bos"),
        "dataset_path": a.get("dataset"),
        "model_class_name": "TransformerBridge",
        "splinterp_version": __version__,
        "store_fingerprint": store.fingerprint,
    }
    return replace(sae, config=replace(sae.config, metadata={k: v for k, v in metadata.items() if v is not None}))

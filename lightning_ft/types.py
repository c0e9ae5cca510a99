"""The values that travel through the product: messages, examples, encoded rows, batches and losses.

Nothing here imports torch at run time, so that tasks and methods can be listed without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

IGNORE_INDEX = -100
"""The label of a position that is not trained, as torch's cross entropy has it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    """The text of the turn."""
    weight: float | None = None
    """Loss weight of the turn's tokens; None: 1 for the assistant, 0 for everybody else."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys that the template may read (`tool_calls`, `name`, `input` ...)."""

    @property
    def loss_weight(self) -> float:
        """The weight with the role's default filled in."""
        if self.weight is not None:
            return self.weight
        return 1.0 if self.role == "assistant" else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The form that chat templates read."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order; every assistant turn is trained unless its weight says otherwise."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the tools that the template shows to the model."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What else the row said: `references`, `split`, `source` ... Never shown to the model."""


@dataclass(frozen=True, slots=True)
class Text:
    """Raw text; every token is trained."""

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with a better and a worse answer."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unpaired:
    """One prompt with one answer that was liked or not (KTO)."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    desirable: bool
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Classified:
    """A text with its class."""

    text: str
    label: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def as_conversation(self) -> Conversation:
        """The text as what the user says and the class, in words, as the answer."""
        return Conversation((Message("user", self.text), Message("assistant", self.label)), meta=self.meta)


Example = Conversation | Text | Preference | Unpaired | Classified
WORDS: Mapping[type[Example], str] = {
    Conversation: "conversations", Text: "raw texts", Preference: "pairs of answers", Unpaired: "judged answers",
    Classified: "texts with a class",
}  # fmt: skip
"""What kinds of examples are called to people."""


@dataclass(frozen=True, slots=True)
class Row:
    """One input row and the place it was read from."""

    values: Mapping[str, Any]
    source: str
    """The file or data set, as the user named it."""
    line: int
    """1-based line (or record) number in the source."""
    part: int = 0
    """1-based number among the rows that this line stands for; 0 where it stands for itself."""
    section: bool = False
    """Whether it is a piece of a longer text, cut by size: it may begin in the middle of anything."""

    @property
    def id(self) -> str:
        """`file:line` or `file:line#part`, the name of the row in every message, ledger and result file."""
        return f"{self.source}:{self.line}#{self.part}" if self.part else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tokenised row. Labels are NOT shifted: `labels[i]` is `input_ids[i]` where token i is trained."""

    input_ids: list[int]
    labels: list[int]
    row: str
    """The row's `file:line`."""
    weight: float = 1.0
    """Loss weight of every supervised token of the row."""
    truncated: int = 0
    """Tokens that `max_length` cut off."""
    supervised_lost: int = 0
    """Supervised tokens among them."""
    roles: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """(tokens, supervised tokens) that each role contributes, where known."""
    weights: list[float] | None = None
    """Weight of each token on top of the row's, where turns are weighted differently; None: all 1."""
    parts: tuple[int, ...] = ()
    """Tokens of each text where the row is several, end to end (the two answers of a pair); empty: it is one."""
    whole: int = 0
    """Tokens of the longest text before the cut, where the row is several."""

    def texts(self) -> tuple[Encoded, ...]:
        """Each text of the row as a row of its own, all of the same name; roles and what was cut are those of the row alone."""
        if not self.parts:
            return (self,)
        ends = [sum(self.parts[: i + 1]) for i in range(len(self.parts))]
        pieces = [slice(end - length, end) for end, length in zip(ends, self.parts, strict=True)]
        return tuple(Encoded(self.input_ids[piece], self.labels[piece], self.row) for piece in pieces)

    @property
    def supervised(self) -> int:
        """Number of tokens with a loss. The first token has no predecessor, so its label never counts."""
        labels = self.labels[1:]
        if isinstance(labels, list):
            return len(labels) - labels.count(IGNORE_INDEX)  # ten times as fast
        return sum(label != IGNORE_INDEX for label in labels)  # of a table, whose rows are arrays


@dataclass(frozen=True, slots=True)
class Supervised:
    """The N positions of a batch at which a token is predicted, in row order."""

    index: Tensor
    """(N,) position in the flattened (B * T) batch whose output predicts the target."""
    targets: Tensor
    """(N,) int64 token ids."""
    weights: Tensor | None
    """(N,) loss weight of each target; None: all 1."""
    labels: Tensor
    """The batch's labels from which these were found."""
    row_weights: Tensor | None
    """The batch's weights from which these were found."""
    read: Tensor | None = None
    """(K,) positions whose output has to be right: those of `index` and some that only make for fewer different shapes, each
    once. None: so many that it is not worth it."""
    rows: Tensor | None = None
    """(N,) row or document of each position, found ahead where rows belong together; None: to be found."""


@dataclass(frozen=True, slots=True)
class Shared:
    """How a packed row of T tokens is computed with what its documents begin with only once: as a row of S tokens."""

    alike: tuple[int, ...]
    """Of each document the tokens at its beginning that are computed in an earlier one."""
    keep: Tensor
    """(S,) positions of the packed row that are computed, ascending."""
    place: Tensor
    """(T,) where in the computed row what belongs to each position is."""
    read: Tensor | None
    """(K,) positions of the computed row whose output has to be right, as `Supervised.read`."""
    input_ids: Tensor
    """The batch's tokens for which this holds."""
    labels: Tensor
    """The batch's labels for which `read` holds."""


@dataclass(slots=True)
class Batch:
    """One micro-batch on one rank.

    Padded: `input_ids` is (B, T), rows padded on the right. Packed: B is 1 and `documents` has the borders.
    """

    input_ids: Tensor
    """(B, T) int64."""
    labels: Tensor
    """(B, T) int64, not shifted, `IGNORE_INDEX` where nothing is trained."""
    position_ids: Tensor
    """(B, T) int64, restarting at 0 with each document."""
    documents: tuple[int, ...] | None
    """Cumulative document borders `(0, n1, n1 + n2, ..., T)` of a packed row; None for a padded batch."""
    rows: tuple[str, ...]
    """`file:line` of each row, in order; empty where the batch only keeps its rank in step with the others."""
    weights: Tensor | None = None
    """(B, T) float32 loss weight per token; None: all 1."""
    lengths: tuple[int, ...] = ()
    """True length of each row; empty where the rows of the batch count nowhere."""
    together: int = 1
    """How many rows in a row belong together: 2 where each better answer is followed by the worse one of its pair."""
    reference: Tensor | None = None
    """(rows,) log-probability (nats) of each row's supervised tokens under the model that training began with, where the
    objective needs it."""

    supervised: Supervised | None = None
    """Where `labels` has targets, as `data.targets` found it before the batch went to a GPU; None: to be found."""

    shared: Shared | None = None
    """How the row is computed with its documents' common beginning only once; None: as it is."""

    def to(self, device: Any) -> Batch:
        """The same batch on another device (Lightning's transfer calls this)."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory from which a GPU copies while the host goes on (torch's DataLoader calls this)."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        labels = change(self.labels)
        weights = None if self.weights is None else change(self.weights)
        reference = None if self.reference is None else change(self.reference)
        known = self.supervised
        if known is not None and known.labels is self.labels and known.row_weights is self.weights:
            own = None if known.weights is None else change(known.weights)
            read = None if known.read is None else change(known.read)
            rows = None if known.rows is None else change(known.rows)
            known = Supervised(change(known.index), change(known.targets), own, labels, weights, read, rows)
        else:
            known = None
        ids, shared = change(self.input_ids), self.shared
        if shared is not None and shared.input_ids is self.input_ids and shared.labels is self.labels:
            read = None if shared.read is None else change(shared.read)
            shared = Shared(shared.alike, change(shared.keep), change(shared.place), read, ids, labels)
        else:
            shared = None
        return replace(
            self, input_ids=ids, labels=labels, position_ids=change(self.position_ids), weights=weights, supervised=known,
            shared=shared, reference=reference,
        )  # fmt: skip


@dataclass(slots=True)
class Step:
    """All micro-batches of one optimiser step on one rank: what Lightning calls a batch."""

    number: int
    """0-based number of the optimiser step in the whole run."""
    micro: tuple[Batch, ...]
    totals: Mapping[str, float]
    """Sums over ALL micro-batches and ranks of the step: `tokens` (supervised, weighted) and `rows`."""

    def to(self, device: Any) -> Step:
        """The same step on another device."""
        return Step(self.number, tuple(batch.to(device) for batch in self.micro), self.totals)

    def pin_memory(self) -> Step:
        """The same step in memory from which a GPU copies while the host goes on."""
        return Step(self.number, tuple(batch.pin_memory() for batch in self.micro), self.totals)


@dataclass(slots=True)
class LossTerm:
    """One named part of an objective: `weight * sum / total`, the total being that of the whole step."""

    sum: Tensor
    """Scalar: the sum over this micro-batch, with gradient."""
    count: Tensor | float
    """What was summed over in this micro-batch; over the step it must add up to the total named by `per`."""
    weight: float = 1.0
    per: Literal["tokens", "rows"] = "tokens"
    """Which of `Step.totals` divides the sum."""


@dataclass(slots=True)
class LossOutput:
    """What an objective returns for one micro-batch."""

    terms: dict[str, LossTerm]
    logs: dict[str, LossTerm] = field(default_factory=dict)
    """Further quantities to log, averaged in the same exact way; no gradient."""


@dataclass(slots=True)
class ScoredRow:
    """One held-out row after the model saw it: what every metric reads."""

    row: str
    example: Example
    nll: float = 0.0
    """Sum of the negative log-likelihoods (nats) of the supervised tokens."""
    tokens: int = 0
    """Number of supervised tokens."""
    correct: int = 0
    """Supervised tokens whose most likely prediction was right."""
    utf8_bytes: int = 0
    """Length of the supervised text in UTF-8 bytes (for bits per byte)."""
    words: int = 0
    """Words of the supervised text."""
    split_words: int = 0
    """Those of them that the tokenizer writes as more than `lightning_ft.words.MOST_PIECES` tokens."""
    prompt: str | None = None
    """The rendered prompt, where text was generated."""
    prediction: str | None = None
    """The generated text; None when nothing was generated."""
    references: tuple[str, ...] = ()
    """Accepted answers."""
    candidates: Mapping[str, float] | None = None
    """Log-likelihood (nats, summed over the tokens of answer and end of turn) of each answer that the task allows; None: it
    allows any."""
    worse: tuple[float, int] | None = None
    """Of the worse answer of a pair, whose better one `nll` and `tokens` are of: sum of the negative log-likelihoods (nats) of
    its supervised tokens, and their number; None: the row is no pair, or no metric asked."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of a benchmark that brings its own prompts and metrics."""

    task: str
    metric: str
    value: float
    error: float | None
    """Standard error; None: the benchmark gives none."""
    rows: int
    """Documents behind the number."""
    higher_is_better: bool | None = None
    filter: str = ""
    """What was taken out of the answer before it was judged, where there are several ways."""


@dataclass(slots=True)
class Benchmarked:
    """What a model did on tasks that are written for a benchmark."""

    measurements: Sequence[Measurement]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    """By task: one mapping per document with what was asked, answered and given for it."""
    details: Mapping[str, Any]
    """What else belongs to the result: versions, configurations of the tasks ..."""

"""`--speculative-config`: vLLM's JSON, and how often drafted tokens are accepted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError, nearest

if TYPE_CHECKING:
    from ..cost.drafting import Draft, Footprint
    from ..cost.memory_ledger import MemoryLedger
    from ..cost.roofline import RooflineCostModel
    from ..cost.specs import Dtype, ModelSpec
    from ..engine.acceptance import Acceptance

FLAG = "--speculative-config"
METHODS = ("draft_model", "eagle", "eagle3", "medusa", "ngram", "lookahead")
_KEYS = {
    "method", "model", "num_speculative_tokens", "draft_tensor_parallel_size", "prompt_lookup_max",
    "prompt_lookup_min", "lookahead_window", "lookahead_guesses", "acceptance",
}  # fmt: skip
_LOOKUP = ("prompt_lookup_max", "prompt_lookup_min")


@dataclass(frozen=True, slots=True)
class Speculation:
    """What a server drafts with: `method`, γ drafted tokens, the draft `model` (None: heads, or a look-up), and how
    often they are accepted. `lookahead`: windows and guesses of lookahead decoding (a method that vLLM does not have).
    """

    method: str
    n_drafted: int
    model: str | None
    acceptance: Acceptance
    draft_tp: int | None = None
    lookahead: tuple[int, int] | None = None

    @property
    def width(self) -> int:
        """Tokens of a sequence in a step: γ + 1; of lookahead decoding with W windows and G guesses, (W + G) γ, since it
        drafts in the same pass (Fu et al. 2024, section 3.2; γ = N - 1)."""
        return self.n_drafted + 1 if self.lookahead is None else sum(self.lookahead) * self.n_drafted

    def draft(self, target: RooflineCostModel, **options: Any) -> Draft:
        """What proposes the tokens, on the target's GPUs; `options` as of the target's cost model.

        Raises:
            ConfigError: an unknown model, or one that cannot be spread so.
        """
        from ..cost import drafting

        if self.method in ("ngram", "lookahead"):
            return drafting.NoDraft()
        if self.method == "medusa":
            return drafting.medusa_draft(target, self.n_drafted)
        shared = (target.gpu, target.calibration, target.engine)
        spread = {**options, "tp": self.tp(target.tp)}
        if self.method == "draft_model":
            return drafting.model_draft(
                self._speaking(target.model), *shared, n_drafted=self.n_drafted, **spread
            )
        head = drafting.eagle_head(target.model)
        fc = (drafting.eagle_projection(target.model),)
        return drafting.model_draft(head, *shared, n_drafted=self.n_drafted, extra_linears=fc, **spread)

    def tp(self, of_target: int) -> int:
        """GPUs that the draft is spread over."""
        return self.draft_tp or of_target

    def spec(self) -> ModelSpec:
        """The draft model's shape."""
        from ..cost.catalogue import load_model

        assert self.model is not None  # checked when it was read
        try:
            return load_model(self.model)
        except ConfigError as error:
            raise ConfigError(f"{FLAG}: model: {error}") from None

    def _speaking(self, target: ModelSpec) -> ModelSpec:
        """The draft model, if it speaks the target's tokens (vLLM demands equal vocabularies)."""
        draft = self.spec()
        if draft.vocab_size != target.vocab_size:
            raise ConfigError(
                f"{FLAG}: model: {draft.name} has {draft.vocab_size} tokens, expected the {target.vocab_size} of {target.name}"
            )
        return draft

    def footprint(self, target: ModelSpec, *, tp: int, kv_dtype: Dtype, block_size: int) -> Footprint:
        """What it holds beside the target."""
        from ..cost import drafting

        if self.method in ("ngram", "lookahead"):
            return drafting.Footprint(0.0, 0.0)
        if self.method == "medusa":
            return drafting.footprint_of_heads(target, tp=tp, n_drafted=self.n_drafted)
        spread = {"tp": self.tp(tp), "kv_dtype": kv_dtype, "block_size": block_size}
        if self.method == "draft_model":
            return drafting.footprint_of_model(self.spec(), **spread)  # type: ignore[arg-type]  # spelt once
        return drafting.footprint_of_eagle(target, **spread)  # type: ignore[arg-type]  # same


def beside(books: MemoryLedger, draft: Footprint, asked_by: str = FLAG) -> MemoryLedger:
    """The ledger with the weights and KV of a draft (or of adapters) in it.

    Raises:
        ConfigError: nothing is left for blocks.
    """
    room = books.kv_bytes - draft.weights_bytes
    block = books.block_bytes + draft.block_bytes
    n_blocks = max(0, int(room // block))
    if n_blocks < 2:
        raise ConfigError(
            f"{asked_by}: its weights ({draft.weights_bytes / 2**30:.1f} GiB) leave no room for KV beside the model's"
        )
    return replace(
        books,
        weights_bytes=books.weights_bytes + draft.weights_bytes,
        kv_bytes=room,
        block_bytes=block,
        n_blocks=n_blocks,
    )


def read_speculation(text: str) -> Speculation:
    """Read the JSON: vLLM's keys, and `acceptance`, which no server states.

    `acceptance` is a chance per token (0.7), the shares accepted by position ([0.8, 0.6, 0.5], as vLLM logs them), or
    {"histogram": [n0, n1, ...]}, how often 0, 1, ... of the drafted tokens were accepted.

    Raises:
        ConfigError: not JSON, an unknown or missing key, or a value out of range.
    """
    from ..engine.acceptance import Acceptance

    given = _object(text)
    method = given.get("method", "draft_model" if "model" in given else None)
    if method not in METHODS:
        raise ConfigError(f"{FLAG}: method: got {method!r}{nearest(str(method), METHODS)}")
    drafted = given.get("num_speculative_tokens")
    if isinstance(drafted, bool) or not isinstance(drafted, int) or drafted < 1:
        raise ConfigError(f"{FLAG}: num_speculative_tokens: got {drafted!r}, expected an integer >= 1")
    model = given.get("model")
    if method == "draft_model" and not isinstance(model, str):
        raise ConfigError(f"{FLAG}: model: got {model!r}, expected the draft model's name")
    if method != "ngram" and any(key in given for key in _LOOKUP):
        raise ConfigError(f"{FLAG}: {' and '.join(_LOOKUP)} go with the method ngram")
    if "acceptance" not in given:
        raise ConfigError(
            f"{FLAG}: acceptance: got none; add what your server measured, e.g. {json.dumps({**given, 'acceptance': 0.7})}: "
            'a chance per token, shares by position ([0.8, 0.6, ...], the "Per-position acceptance rate" of vLLM\'s log) or '
            '{"histogram": [...]}; it depends on the text, so that none is assumed'
        )
    try:
        accepted = _acceptance(given["acceptance"], drafted, Acceptance)
    except ConfigError as error:
        raise ConfigError(f"{FLAG}: {error}") from None
    draft_tp = _whole(given, "draft_tensor_parallel_size", None)
    return Speculation(method, drafted, model, accepted, draft_tp, _lookahead(given, method))


def _lookahead(given: dict[str, Any], method: str) -> tuple[int, int] | None:
    """Windows and guesses; as many guesses as windows unless stated (the paper's default)."""
    keys = ("lookahead_window", "lookahead_guesses")
    if method != "lookahead":
        if any(key in given for key in keys):
            raise ConfigError(f"{FLAG}: {' and '.join(keys)} go with the method lookahead")
        return None
    windows = _whole(given, "lookahead_window", None)
    if windows is None:
        raise ConfigError(f"{FLAG}: lookahead_window: got none, expected an integer >= 1")
    return windows, _whole(given, "lookahead_guesses", windows) or windows


def _whole(given: dict[str, Any], key: str, absent: int | None) -> int | None:
    value = given.get(key, absent)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigError(f"{FLAG}: {key}: got {value!r}, expected an integer >= 1")
    return value


def _object(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{FLAG}: got {text!r}, expected JSON ({error})") from None
    if not isinstance(given, dict):
        raise ConfigError(f"{FLAG}: got {text!r}, expected a JSON object")
    for key in given:
        if key not in _KEYS:
            raise ConfigError(f"{FLAG}: unknown key {key!r}{nearest(key, _KEYS)}")
    return given


def _acceptance(value: Any, drafted: int, law: type[Acceptance]) -> Acceptance:
    if _is_chance(value):
        return law.at_rate(float(value), drafted)
    if isinstance(value, dict) and set(value) == {"histogram"}:
        return law.by_histogram(_numbers(value["histogram"], drafted + 1, "histogram"))
    rates = _numbers(value, drafted, "acceptance")
    if not all(_is_chance(rate) for rate in rates):
        raise ConfigError(f"acceptance: got {value!r}, expected fractions in 0..1")
    return law.by_position(rates)


def _is_chance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _numbers(value: Any, length: int, name: str) -> Sequence[float]:
    """A list of that many numbers, or an error that says so."""
    numbers = isinstance(value, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in value
    )
    if not numbers or len(value) != length:
        raise ConfigError(
            f"{name}: got {value!r}, expected {length} numbers (num_speculative_tokens decides)"
        )
    return [float(x) for x in value]

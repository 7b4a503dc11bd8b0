"""A teacher that never writes: a causal LM whose probabilities for a few words, after a snippet, are compared.

For each word the log-probability of the whole word given the prompt, minus its mean over unlabelled texts
(calibration takes off how likely a word is anyway); a snippet passes if its best word is one of `passes`.

The prompts of a batch are run once, padded on the left so that every next token stands in the last column; their
key-value cache then serves all words, of which only the tokens after the first are run at all. The vocabulary's
logits are computed at those positions only. Left out: where the model runs; it is loaded here, so the object is made
in the process (a Ray actor, say) that is to hold it. Called by the budget ledger.

Shapes: B snippets, W words, T prompt tokens of the longest, L tokens of the longest word, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.models import fingerprint, load_causal_lm, load_tokenizer, resolve
from engine.sieve.options import TeacherOptions
from engine.sieve.teacher import Snippet, Verdict, fill, hash_of

if TYPE_CHECKING:
    import torch

Scores = npt.NDArray[np.float64]


class ScorerTeacher:
    """Scores the words `options.passes` and `options.fails` after each snippet with the model `options.model`.

    Words are put after the prompt with a space between. `device` is a torch device name; unset: a GPU where the options
    ask for one. Raises `SourceError` for a model that cannot be had.
    """

    shared = True

    def __init__(self, options: TeacherOptions, criterion: str = "", *, device: str = "") -> None:
        self.words = [*options.passes, *options.fails]
        self.at_once = options.at_once
        asked = options.prompt or f"{{snippet}}\n\nTopic of this article ({', '.join(self.words)}):"
        # The space before a word belongs to the word's first token.
        self._prompt = asked.rstrip()
        self._criterion = criterion
        self._passing = len(options.passes)
        self._tokenizer = load_tokenizer(options.model)
        self._device = device or ("cuda" if options.gpus else "cpu")
        dtype = "float32" if self._device == "cpu" else "bfloat16"
        self._model: Any = load_causal_lm(options.model, dtype).to(self._device)
        told = (fingerprint(resolve(options.model)), self._prompt, criterion, options.passes, options.fails)
        self._identity = hash_of("scorer", *told)
        self._offset_W = np.zeros(len(self.words))
        self.fingerprint = self._identity

    def __repr__(self) -> str:
        return f"ScorerTeacher({', '.join(self.words)})"

    def calibrate(self, texts: Sequence[str]) -> None:
        """Take off each word's mean log-probability over these texts; no texts: take nothing off.

        The fingerprint follows, since the answers do: a resumed run calibrates on the same texts to find its answers.
        """
        self._offset_W = np.zeros(len(self.words))
        self.fingerprint = hash_of(self._identity, *texts) if texts else self._identity
        raw_NW = self.log_probabilities(texts)
        fit = np.isfinite(raw_NW).all(1)
        if fit.any():
            self._offset_W = raw_NW[fit].mean(0)

    def log_probabilities(self, texts: Sequence[str]) -> Scores:
        """Natural log-probability of each word after each text, less calibration; shape (N, W), nan for too long."""
        scores_NW = np.full((len(texts), len(self.words)), np.nan)
        for rows, scores_BW in self._batches([self._ids(text) for text in texts]):
            scores_NW[rows] = scores_BW
        return scores_NW

    def most_tokens(self, snippet: Snippet) -> tuple[int, int]:
        """Exactly what the model reads: the prompt, and of each word all tokens but the last."""
        return len(self._ids(snippet.text)) + sum(len(word) - 1 for word in self._word_ids), 0

    def judge(self, snippets: Sequence[Snippet]) -> Iterator[tuple[int, Verdict]]:
        """As in `Teacher`; `score` is the best passing word's log-probability less the best failing word's, in nats."""
        ids = [self._ids(snippet.text) for snippet in snippets]
        more = sum(len(word) - 1 for word in self._word_ids)
        for at, each in enumerate(ids):
            if len(each) > self._longest:
                yield at, Verdict(None, "too long")
        for rows, scores_BW in self._batches(ids):
            for at, scores_W in zip(rows, scores_BW, strict=True):
                score = float(scores_W[: self._passing].max() - scores_W[self._passing :].max())
                best = self.words[int(scores_W.argmax())]
                yield at, Verdict(score > 0, tokens_in=len(ids[at]) + more, words=best, score=score)

    def _batches(self, ids: list[list[int]]) -> Iterator[tuple[list[int], Scores]]:
        """Indices and calibrated scores (B, W) of batches of similar length; what is too long is left out."""
        order = sorted((at for at in range(len(ids)) if len(ids[at]) <= self._longest), key=lambda at: len(ids[at]))
        for start in range(0, len(order), self.at_once):
            rows = order[start : start + self.at_once]
            yield rows, self._score([ids[at] for at in rows]) - self._offset_W

    def _score(self, ids: list[list[int]]) -> Scores:
        """Log-probabilities (B, W) of the words after prompts of different lengths."""
        import torch

        width = max(len(each) for each in ids)
        ids_BT = torch.tensor([[0] * (width - len(each)) + each for each in ids], device=self._device)
        mask_BT = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in ids], device=self._device)
        with torch.inference_mode():
            first = self._model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=(mask_BT.cumsum(1) - 1).clamp(min=0),
                use_cache=True,
                logits_to_keep=1,
            )
            total_BW = _log_softmax(first.logits[:, -1])[:, [word[0] for word in self._word_ids]]
            long = [at for at, word in enumerate(self._word_ids) if len(word) > 1]
            if long:
                total_BW[:, long] += self._continue(long, mask_BT, first.past_key_values)
        scores: Scores = total_BW.double().cpu().numpy()
        return scores

    def _continue(self, long: list[int], mask_BT: "torch.Tensor", cache: Any) -> "torch.Tensor":
        """Log-probability (B, len(long)) of the words `long` after their first token, given the prompts' cache."""
        import torch

        words = [self._word_ids[at] for at in long]
        steps = max(len(word) for word in words) - 1
        # Rows run over the words of the first prompt, then of the second: R = B * len(long).
        cache.batch_repeat_interleave(len(words))
        fed = torch.tensor([word[:-1] + [0] * (steps + 1 - len(word)) for word in words], device=self._device)
        wanted = torch.tensor([word[1:] + [0] * (steps + 1 - len(word)) for word in words], device=self._device)
        counts = torch.tensor([[step < len(word) - 1 for step in range(steps)] for word in words], device=self._device)
        batch = len(mask_BT)
        mask_RT = mask_BT.repeat_interleave(len(words), 0)
        lengths_R1 = mask_RT.sum(1, keepdim=True)
        logits_RLV = self._model(
            input_ids=fed.repeat(batch, 1),
            attention_mask=torch.cat([mask_RT, mask_RT.new_ones(len(mask_RT), steps)], 1),
            position_ids=lengths_R1 + torch.arange(steps, device=self._device),
            past_key_values=cache,
            use_cache=True,
        ).logits
        logp_RL = _log_softmax(logits_RLV).gather(2, wanted.repeat(batch, 1)[..., None])[..., 0]
        return (logp_RL * counts.repeat(batch, 1)).sum(1).view(batch, len(words))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(fill(self._prompt, self._criterion, text))["input_ids"]
        return ids

    @cached_property
    def _longest(self) -> int:
        """Tokens of the longest prompt that leaves room for every word."""
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return int(positions or 1 << 30) - max(len(word) for word in self._word_ids)

    @cached_property
    def _word_ids(self) -> list[list[int]]:
        """Tokens of each word as they follow the prompt."""
        before = self._ids("")
        found = []
        for word in self.words:
            whole: list[int] = self._tokenizer(f"{fill(self._prompt, self._criterion, '')} {word}")["input_ids"]
            alone: list[int] = self._tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            # Where a tokenizer joins the prompt's end with the word, the word on its own is the nearest thing.
            found.append(whole[len(before) :] if whole[: len(before)] == before else alone)
        return found


def _log_softmax(logits: "torch.Tensor") -> "torch.Tensor":
    """Over the last axis, in single precision whatever the model's."""
    return logits.float().log_softmax(-1)

"""The learners of policy and critic, and what they make of a step's samples: look at them, then learn from them.

    prepare   minibatches of rows (`engine.finetune.packing`), the same in every epoch, each worker its own
    look      log-probabilities under policy and reference, and values: (B, T) on every worker
    learn     optimiser steps on credited tokens, policy and critic

Blind to the algorithm: it is given an advantage, a return and a macro for every token, and which tokens count.

Left out: where credit comes from (`engine.rlhf.credit`), rollouts and the order of things (`engine.rlhf.loop`, which
calls this in every training worker).

Shapes: B samples of a step, T tokens of the longest response, N written tokens of a row, W width.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.finetune.learner import Learner
from engine.finetune.options import OptimiserOptions, ParallelOptions
from engine.finetune.packing import pack, share
from engine.rlhf.credit import Macros, value_weights
from engine.rlhf.critic import Critic
from engine.rlhf.losses import kl_estimate, policy_loss, value_loss
from engine.rlhf.options import CriticOptions, LearningOptions, MacroOptions
from engine.rlhf.policy import Policy, PolicyRow
from engine.rlhf.segmenters import Bools, Floats, Ints

Tensor = torch.Tensor


@dataclass(frozen=True)
class Sample:
    """A prompt and a response, as tokens; both have one at least."""

    prompt: Sequence[int]
    response: Sequence[int]


@dataclass(frozen=True)
class Looked:
    """What the learner thinks of a step's tokens, each (B, T), 0 where there are none."""

    logp: Floats
    reference: Floats
    values: Floats


@dataclass(frozen=True)
class Credited:
    """What a step's tokens are to be learnt from: all (B, T)."""

    logp: Floats
    """Under the policy that is improved on: the clip is around it."""
    reference: Floats
    values: Floats
    advantages: Floats
    returns: Floats
    macros: Macros
    weights: Floats | None = None
    """Importance weights of tokens from another policy than that."""


@dataclass(frozen=True)
class _Row:
    """A row of samples (by number) and, once there are, its tokens' credit, (N,) each."""

    policy: PolicyRow
    samples: tuple[int, ...]
    places: tuple[Ints, Ints]
    """Sample and place in its response of each of the N tokens."""
    features_NW: Tensor | None = None
    credit: dict[str, Tensor] | None = None

    def to(self, device: Any) -> "_Row":
        credit = None if self.credit is None else {name: each.to(device) for name, each in self.credit.items()}
        features = None if self.features_NW is None else self.features_NW.to(device)
        return replace(self, policy=self.policy.to(device), credit=credit, features_NW=features)


class PolicyLearner:
    """Policy and, unless it is None, critic under training; needs an initialised process group."""

    def __init__(
        self,
        policy: Policy,
        critic: Critic | None,
        *,
        learning: LearningOptions,
        macro: MacroOptions,
        critic_options: CriticOptions,
        optimiser: OptimiserOptions,
        parallel: ParallelOptions,
        seed: int,
        bf16: bool = False,
    ) -> None:
        self.policy, self.critic = policy, critic
        self._learning, self._macro, self._critic_options, self._seed = learning, macro, critic_options, seed
        self._capacity = parallel.tokens_per_device
        updates = learning.steps * learning.epochs * learning.minibatches
        self._actor = Learner(policy, optimiser, parallel, updates, bf16=bf16, name="policy-")
        self._critic: Learner | None = None
        if critic is not None:
            rate = optimiser.model_copy(update={"learning_rate": critic_options.learning_rate})
            self._critic = Learner(critic, rate, parallel, updates, bf16=bf16 and critic.own_body, name="critic-")
        self._minibatches: list[list[_Row]] = []
        self._samples: Sequence[Sample] = ()
        self._told: dict[str, Tensor] = {}
        self._per_token = 1.0
        """What makes a mean over decisions one over tokens."""

    def prepare(self, samples: Sequence[Sample], step: int) -> None:
        """Cut a step's samples into minibatches of rows, and do what the trunk has to."""
        rank, workers = torch.distributed.get_rank(), self._actor.workers
        self._samples = samples
        order = np.random.default_rng([self._seed, step]).permutation(len(samples))
        self._minibatches = []
        for part in np.array_split(order, min(self._learning.minibatches, len(samples))):
            lengths = [len(samples[at].prompt) + len(samples[at].response) for at in part]
            rows = pack(lengths, self._capacity) if self.policy.apart else [[at] for at in range(len(part))]
            mine = [tuple(int(part[at]) for at in row) for row in share(rows, workers)[rank]]
            self._minibatches.append([self._row(row) for row in mine])

    def look(self) -> Looked:
        """Every token's log-probabilities and value, gathered from all workers."""
        shape = (len(self._samples), max((len(each.response) for each in self._samples), default=0))
        logp, reference, values = (np.zeros(shape) for _ in range(3))
        actor = self._actor.engine
        actor.eval()
        with torch.no_grad():
            for rows in self._minibatches:
                for at, row in enumerate(rows):
                    row = row.to(self._actor.device)
                    if self.policy.frozen:
                        row = replace(row, policy=row.policy.with_hidden(actor(row.policy, "trunk")))
                    logp[row.places] = _array(actor(row.policy))
                    reference[row.places] = _array(actor(row.policy, "reference"))
                    if self._critic is not None:
                        row = replace(row, features_NW=self.policy.features()[row.policy.predicting_N])
                        values[row.places] = _array(self._values(row))
                    rows[at] = row
        gathered = torch.from_numpy(np.stack([logp, reference, values])).to(self._actor.device)
        torch.distributed.all_reduce(gathered)
        return Looked(*_array(gathered))

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """Of each token of a text but the first, at temperature 1; every worker has to call it."""
        count = len(ids)
        at_N = torch.arange(count - 1)
        ids_T = torch.tensor(list(ids))
        row = PolicyRow(ids_T[None], torch.arange(count)[None], (count,), at_N, ids_T[1:])
        self._actor.engine.eval()
        with torch.no_grad():
            found: list[float] = self._actor.engine(row.to(self._actor.device), "policy", 1.0).tolist()
        return found

    def learn(self, credited: Credited) -> dict[str, float]:
        """All epochs over the step's samples; means over the updates of what there is to be told about them."""
        written_BT, macros = credited.macros.written_BT, credited.macros
        sigma_BT = value_weights(macros, self._macro.value_weighting)
        told: dict[str, list[float]] = {}
        for _ in range(self._learning.epochs):
            for rows in self._minibatches:
                some = self._all_of(rows)
                tokens = int(written_BT[some].sum())
                decisions = int((macros.length_BK[some] > 0).sum())
                if not tokens:
                    continue
                given = [replace(row, credit=self._credit(row, credited, sigma_BT)) for row in rows]
                for name, value in self._update(given, tokens, decisions).items():
                    told.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in told.items()}

    def weights(self, names: Collection[str]) -> dict[str, Tensor] | None:
        """The policy's weights of these names, on the first worker (None elsewhere); every worker has to call it."""
        found = self._actor.weights({f"lm.{name}" for name in names})
        return None if found is None else {name.removeprefix("lm."): each for name, each in found.items()}

    def critic_weights(self) -> dict[str, Tensor] | None:
        """As `weights`, of the critic; None where there is none."""
        return None if self._critic is None else self._critic.weights()

    def save(self, folder: Path) -> None:
        """Write both optimisers' state, each worker its part."""
        for each in self._learners():
            each.save(folder)

    def load(self, folder: Path) -> None:
        """Go on where `save` was called. Raises `HeadraceError` for what is no such state."""
        for each in self._learners():
            each.load(folder)

    @property
    def parts(self) -> list[str]:
        """The files this worker's state goes to."""
        return [each.part for each in self._learners()]

    def _learners(self) -> list[Learner]:
        return [self._actor, *([self._critic] if self._critic else [])]

    def _update(self, rows: list[_Row], tokens: int, decisions: int) -> dict[str, float]:
        """One optimiser step of each."""
        joint = self._macro.ratio == "joint"
        self._per_token = decisions / tokens if joint else 1.0
        self._told = {name: torch.zeros((), device=self._actor.device) for name in ("clipped", "approx_kl")}
        stepped = self._actor.step(rows, decisions if joint else tokens, self._policy_loss)
        sums = torch.stack(list(self._told.values()))
        torch.distributed.all_reduce(sums)
        told = {
            "policy_loss": stepped.loss,
            "gradient_norm": stepped.gradient_norm,
            "learning_rate": stepped.learning_rate,
            "clip_fraction": sums[0].item() / (decisions if joint else tokens),
            "approx_kl": sums[1].item() / tokens,
        }
        if self._critic is not None:
            by_macro = self._macro.value_loss == "macro"
            stepped = self._critic.step(rows, decisions if by_macro else tokens, self._value_loss)
            told |= {"value_loss": stepped.loss, "value_gradient_norm": stepped.gradient_norm}
        return told

    def _policy_loss(self, engine: Any, row: _Row) -> Tensor:
        logp_N = engine(row.policy)
        given = row.credit
        assert given is not None
        loss, clipped = policy_loss(
            logp_N,
            given["logp"],
            given["advantage"],
            clip=self._learning.clip,
            macro_N=given["macro"] if self._macro.ratio == "joint" else None,
            weight_N=given.get("weight"),
        )
        self._told["clipped"] += clipped
        self._told["approx_kl"] += kl_estimate(given["logp"], logp_N.detach()).sum()
        if self._learning.kl_loss:
            loss = loss + self._learning.kl_loss * self._per_token * kl_estimate(logp_N, given["reference"]).sum()
        return loss

    def _value_loss(self, engine: Any, row: _Row) -> Tensor:
        value_N = engine(row.policy, row.features_NW)
        given = row.credit
        assert given is not None
        old_N, return_N, clip = given["value"], given["return"], self._critic_options.clip
        if self._macro.value_loss == "macro":
            first_M, index_N = _firsts(given["macro"])
            value_N, old_N = (
                torch.zeros(len(first_M), device=each.device).index_add(0, index_N, each * given["sigma"])
                for each in (value_N, old_N)
            )
            return_N = return_N[first_M]
        return value_loss(value_N, old_N, return_N, clip=clip)

    def _values(self, row: _Row) -> Tensor:
        assert self._critic is not None
        self._critic.engine.eval()
        found: Tensor = self._critic.engine(row.policy, row.features_NW)
        return found

    def _credit(self, row: _Row, credited: Credited, sigma_BT: Floats) -> dict[str, Tensor]:
        """What belongs to the row's tokens; macros are numbered from 0 within it."""
        arrays = {
            "logp": credited.logp,
            "reference": credited.reference,
            "value": credited.values,
            "advantage": credited.advantages,
            "return": credited.returns,
            "sigma": sigma_BT,
        }
        if credited.weights is not None:
            arrays["weight"] = credited.weights
        found = {name: torch.from_numpy(array[row.places]).float() for name, array in arrays.items()}
        of_sample, macro = row.places[0], credited.macros.macro_BT[row.places]
        changed = np.ones(len(macro), bool)
        changed[1:] = (np.diff(of_sample) != 0) | (np.diff(macro) != 0)
        found["macro"] = torch.from_numpy(changed.cumsum() - 1)
        return {name: each.to(self._actor.device) for name, each in found.items()}

    def _row(self, samples: tuple[int, ...]) -> _Row:
        """Samples one after the other; none of them: a token from which nothing is learnt."""
        ids: list[int] = []
        positions: list[int] = []
        predicting: list[Ints] = []
        places: list[tuple[Ints, Ints]] = []
        lengths = []
        for number in samples:
            sample = self._samples[number]
            first, count = len(ids) + len(sample.prompt) - 1, len(sample.response)
            predicting.append(np.arange(first, first + count))
            places.append((np.full(count, number), np.arange(count)))
            ids += [*sample.prompt, *sample.response]
            lengths.append(len(sample.prompt) + count)
            positions += range(lengths[-1])
        ids_T = torch.tensor(ids or [0])
        at_N = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *predicting]))
        both = [np.concatenate([np.zeros(0, np.int64), *each]) for each in zip(*places, strict=True)] or [
            np.zeros(0, np.int64)
        ] * 2
        row = PolicyRow(
            ids_T[None], torch.tensor(positions or [0])[None], tuple(lengths) or (1,), at_N, ids_T[at_N + 1]
        )
        return _Row(row, samples, (both[0], both[1]))

    def _all_of(self, rows: list[_Row]) -> Bools:
        """Which samples a minibatch has, on all workers."""
        mask = torch.zeros(len(self._samples), device=self._actor.device)
        for row in rows:
            mask[list(row.samples)] = 1
        torch.distributed.all_reduce(mask)
        return np.asarray(mask.cpu()) > 0


def _firsts(macro_N: Tensor) -> tuple[Tensor, Tensor]:
    """The first token of each macro, (M,), and the macro's number of each token, (N,)."""
    changed_N = torch.ones_like(macro_N, dtype=torch.bool)
    changed_N[1:] = macro_N[1:] != macro_N[:-1]
    return changed_N.nonzero()[:, 0], changed_N.cumsum(0) - 1


def _array(tensor: Tensor) -> Floats:
    return np.asarray(tensor.detach().double().cpu())

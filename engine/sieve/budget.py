"""The budget ledger: what a teacher has been asked, what it said, and what that cost; no limit is ever exceeded.

    RUN/budget/asked-000001.json      a reservation: questions about to be asked, each with the most it can cost
    RUN/budget/settled-000001.json    what they did cost, and the answers, once all of them are in
    CACHE/FINGERPRINT/ab/abcd.json    one answer, written the moment it arrives; runs share the cache

A question is paid for when it is reserved, at its worst case, and the difference is given back when its answer is
there. So after SIGKILL nothing is charged twice and no limit can be passed: what was in flight counts as asked, and
asking it again is a new charge. Reservations are numbered and created exclusively: whoever makes number n has taken
all before it into account, so that even two processes on one budget stay within it.

An answer without a verdict is asked for once more; the second such answer is kept as a discard, counted by reason.
Answers in the cache are free. Memory and files are proportional to what was asked; folders are listed once.

Left out: what is asked (`engine.sieve.rules`) and by whom (the teachers). Called by the active loop.
"""

import json
import threading
import uuid
from collections import Counter, deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from upath import UPath

from engine.errors import ArtifactError, HeadraceError
from engine.sieve.options import BudgetOptions
from engine.sieve.teacher import FINAL, TRANSIENT, Snippet, Teacher, Verdict, hash_of
from engine.storage import create, make_directory, names, replace, storage_errors


@dataclass(frozen=True)
class _Charge:
    """A reserved question: the key of its answer, the fingerprint of its teacher, the most tokens it can take."""

    key: str
    teacher: str
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class _Reservation:
    """Questions paid for together; `id` marks their answers in the cache as this run's own."""

    number: int
    id: str
    shared: bool
    charges: list[_Charge]


class BudgetLedger:
    """The budget of one run; `ask` may be called from several threads, which then take turns.

    `folder` is the run's directory, `cache` the directory of answers that runs share. Raises `StorageError` where
    either cannot be used and `ArtifactError` for a damaged file, here as in `ask`.
    """

    def __init__(self, folder: UPath, cache: UPath, options: BudgetOptions) -> None:
        self.options = options
        self._folder = folder / "budget"
        self._cache = cache
        self._lock = threading.RLock()
        self._queries = self._tokens_in = self._tokens_out = 0
        self._answers: dict[str, Verdict] = {}
        self._unclear: dict[str, Verdict] = {}
        """Questions whose first answer held no verdict, not asked again yet."""
        self._short = ""
        """Why the question that was wanted last could not be paid for."""
        self._made: set[UPath] = set()
        self._heard: set[str] = set()
        """Fingerprints of the teachers that have answered this object."""
        self._restore()

    @property
    def queries(self) -> int:
        """Questions charged, those without a usable answer and those in flight at a kill included."""
        return self._queries

    @property
    def tokens(self) -> int:
        """Tokens charged, read and written together; at its worst case where no answer has come."""
        return self._tokens_in + self._tokens_out

    @property
    def money(self) -> float:
        """Money charged, in the currency of the prices."""
        return self._price(self._tokens_in, self._tokens_out)

    @property
    def exhausted_by(self) -> str:
        """The limit that ended the asking, in words; empty as long as none has."""
        return self._short or self._lacks(1, 0, 0)

    @property
    def discards(self) -> dict[str, int]:
        """Questions left without a verdict, by reason."""
        unclear = [*self._answers.values(), *self._unclear.values()]
        return dict(Counter(verdict.reason for verdict in unclear if verdict.passed is None))

    def ask(self, teacher: Teacher, snippets: Sequence[Snippet]) -> list[Verdict | None]:
        """A verdict for each snippet, in order; None where it was not asked because the budget is spent.

        A text is asked about once, however often it comes, in this call or another, before or after a kill. Snippets
        are asked in the given order, in portions of `teacher.at_once`; the first that cannot be paid for ends the
        asking. Raises what the teacher raises; what it had answered by then is kept.
        """
        return self._ask(teacher, snippets, 1)

    def self_agreement(self, teacher: Teacher, snippets: Sequence[Snippet]) -> tuple[float | None, int]:
        """The share of snippets on which the teacher says the same when asked again past the cache (its own ceiling),
        and of how many.

        The second opinions are charged like any question and kept like any answer (a resume does not pay for them
        again), apart from the first. Snippets without two verdicts are left out; None if that leaves none.
        """
        first = self.ask(teacher, snippets)
        known = [(snippet, said.passed) for snippet, said in zip(snippets, first, strict=True) if said]
        decided = [(snippet, passed) for snippet, passed in known if passed is not None]
        second = self._ask(teacher, [snippet for snippet, _ in decided], 2)
        pairs = [(one, two.passed) for (_, one), two in zip(decided, second, strict=True) if two]
        same = [one == two for one, two in pairs if two is not None]
        return (sum(same) / len(same) if same else None), len(same)

    def _ask(self, teacher: Teacher, snippets: Sequence[Snippet], opinion: int) -> list[Verdict | None]:
        keys = [hash_of(teacher.fingerprint, snippet.text, opinion) for snippet in snippets]
        texts = dict(zip(reversed(keys), reversed(snippets), strict=True))
        with self._lock:
            self._recall(teacher, dict.fromkeys(key for key in keys if key not in self._answers))
            waiting = deque(dict.fromkeys(key for key in keys if key not in self._answers))
            while waiting:
                # One that is refused outright (a wrong key, an unknown model) shall cost one question, not a portion.
                size = max(teacher.at_once, 1) if teacher.fingerprint in self._heard else 1
                portion = [texts[key] for key in islice(waiting, size)]
                reservation = self._reserve(teacher, list(zip(waiting, portion, strict=False)))
                if reservation is None:
                    break
                for _ in reservation.charges:
                    waiting.popleft()
                self._question(teacher, reservation, portion[: len(reservation.charges)])
                self._heard.add(teacher.fingerprint)
                waiting.extend(each.key for each in reservation.charges if each.key not in self._answers)
            return [self._answers.get(key) or self._unclear.get(key) for key in keys]

    def _reserve(self, teacher: Teacher, wanted: list[tuple[str, Snippet]]) -> _Reservation | None:
        """Pay for as many of the questions as fit, at their worst case; None if not even the first does."""
        worst = [_Charge(key, teacher.fingerprint, *teacher.most_tokens(snippet)) for key, snippet in wanted]
        while True:
            charges: list[_Charge] = []
            tokens_in = tokens_out = 0
            for each in worst:
                tokens_in, tokens_out = tokens_in + each.tokens_in, tokens_out + each.tokens_out
                self._short = self._lacks(len(charges) + 1, tokens_in, tokens_out)
                if self._short:
                    break
                charges.append(each)
            if not charges:
                return None
            # Less than a whole portion is not the end: most questions cost less than their worst case.
            self._short = ""
            reservation = _Reservation(self._next, uuid.uuid4().hex, teacher.shared, charges)
            self._make(self._folder)
            if create(self._path("asked", self._next), json.dumps(asdict(reservation)).encode()):
                self._next += 1
                self._charge(charges)
                return reservation
            # Another process is on this budget: what it has reserved counts before the next try.
            self._take_in(self._next, settled=False)

    def _question(self, teacher: Teacher, reservation: _Reservation, snippets: list[Snippet]) -> None:
        """Ask what is reserved; every answer is kept as it arrives, whatever ends the asking."""
        settled: list[dict[str, Any] | None] = [None] * len(snippets)
        path = self._path("settled", reservation.number)
        try:
            with ExitStack() as stack:
                answers = teacher.judge(snippets)
                if isinstance(answers, Generator):
                    stack.enter_context(closing(answers))
                for at, verdict in answers:
                    charge = reservation.charges[at]
                    self._give_back(charge, verdict.tokens_in, verdict.tokens_out)
                    kept = self._keep(charge, verdict, reservation)
                    settled[at] = {"in": verdict.tokens_in, "out": verdict.tokens_out, "verdict": asdict(kept)}
        except BaseException:
            # What went wrong must not be hidden by a disk that is full as well.
            with suppress(HeadraceError):
                replace(path, json.dumps(settled).encode())
            raise
        for at, charge in enumerate(reservation.charges):
            if settled[at] is None:
                verdict = Verdict(None, "no answer", charge.tokens_in, charge.tokens_out)
                kept = self._keep(charge, verdict, reservation)
                settled[at] = {"in": verdict.tokens_in, "out": verdict.tokens_out, "verdict": asdict(kept)}
        replace(path, json.dumps(settled).encode())

    def _keep(self, charge: _Charge, verdict: Verdict, reservation: _Reservation) -> Verdict:
        """Take in an answer; returns the one that stands, another run's if that was quicker."""
        again = charge.key in self._unclear
        if verdict.passed is None and verdict.reason not in FINAL and not again:
            self._unclear[charge.key] = verdict
            return verdict
        if reservation.shared and verdict.reason not in TRANSIENT:
            path = self._place(charge.teacher, charge.key)
            self._make(path.parent)
            if not create(path, json.dumps({**asdict(verdict), "charge": reservation.id}).encode()):
                verdict = (_read_answer(path) or (verdict, ""))[0]
        self._settle(charge.key, verdict)
        return verdict

    def _settle(self, key: str, verdict: Verdict) -> None:
        self._unclear.pop(key, None)
        self._answers[key] = verdict

    def _recall(self, teacher: Teacher, keys: Iterable[str]) -> None:
        """Take in the answers that the cache holds."""
        if not teacher.shared:
            return
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda key: (key, _read_answer(self._place(teacher.fingerprint, key))), keys)
            for key, answer in found:
                if answer:
                    self._settle(key, answer[0])

    def _restore(self) -> None:
        """Take in what this run has asked before, in order."""
        found = set(names(self._folder))
        numbers = sorted(int(name[6:-5]) for name in found if name.startswith("asked-") and name.endswith(".json"))
        self._next = 1
        for number in numbers:
            self._next = number
            self._take_in(number, settled=self._path("settled", number).name in found)

    def _take_in(self, number: int, *, settled: bool) -> None:
        """Charge a reservation that this object did not make, and learn its answers."""
        self._next = number + 1
        body = _read(self._path("asked", number))
        if body is None:
            raise ArtifactError(f"{self._path('asked', number)} has vanished.", "Run the same command again.")
        charges = [_Charge(**each) for each in body["charges"]]
        self._charge(charges)
        entries = _read(self._path("settled", number)) if settled else None
        for charge, entry in zip(charges, entries or [None] * len(charges), strict=True):
            if entry:
                self._give_back(charge, entry["in"], entry["out"])
                verdict = Verdict(**entry["verdict"])
                again = charge.key in self._unclear
                if verdict.passed is None and verdict.reason not in FINAL and not again:
                    self._unclear[charge.key] = verdict
                else:
                    self._settle(charge.key, verdict)
            elif body["shared"]:
                # A kill came before the settlement: the cache knows which answers had arrived, and whose they are.
                answer = _read_answer(self._place(charge.teacher, charge.key))
                if answer and answer[1] == body["id"]:
                    self._give_back(charge, answer[0].tokens_in, answer[0].tokens_out)
                    self._settle(charge.key, answer[0])

    def _charge(self, charges: list[_Charge]) -> None:
        self._queries += len(charges)
        self._tokens_in += sum(each.tokens_in for each in charges)
        self._tokens_out += sum(each.tokens_out for each in charges)

    def _give_back(self, charge: _Charge, tokens_in: int, tokens_out: int) -> None:
        self._tokens_in += tokens_in - charge.tokens_in
        self._tokens_out += tokens_out - charge.tokens_out

    def _lacks(self, queries: int, tokens_in: int, tokens_out: int) -> str:
        """Which limit so many more questions and tokens would pass, in words; empty if none."""
        limits = self.options
        if self._queries + queries > limits.queries:
            return f"all {limits.queries} questions of the budget are asked"
        if limits.tokens is not None:
            left = limits.tokens - self.tokens
            if left <= 0 or tokens_in + tokens_out > left:
                return f"{max(left, 0)} of {limits.tokens} tokens are left, too few for another question"
        if limits.money is not None:
            price = self._price(self._tokens_in + tokens_in, self._tokens_out + tokens_out)
            if self.money >= limits.money or price > limits.money:
                left_over = max(limits.money - self.money, 0.0)
                return f"{left_over:.4g} of the budget of {limits.money:g} is left, too little for another question"
        return ""

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.options.price_in + tokens_out * self.options.price_out) / 1e6

    def _make(self, folder: UPath) -> None:
        if folder not in self._made:
            make_directory(folder)
            self._made.add(folder)

    def _path(self, kind: str, number: int) -> UPath:
        return self._folder / f"{kind}-{number:06d}.json"

    def _place(self, fingerprint: str, key: str) -> UPath:
        return self._cache / fingerprint / key[:2] / f"{key}.json"


def _read_answer(path: UPath) -> tuple[Verdict, str] | None:
    """An answer in the cache and the reservation it was paid by; None if there is none."""
    body = _read(path)
    if body is None:
        return None
    charge = body.pop("charge")
    return Verdict(**body), charge


def _read(path: UPath) -> Any:
    """What a JSON file holds; None if there is no such file. Raises `ArtifactError` for a damaged one."""
    with storage_errors(path):
        try:
            return json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            raise ArtifactError(f"{path} is damaged.", "Delete it and run the same command again.") from None

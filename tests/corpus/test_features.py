import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from engine.corpus import FeatureCache
from engine.corpus.features import drop_tokens, with_noise
from engine.errors import RecipeError

WIDTH = 6
KEYS = {"encoder": "e", "layer": -1, "pooling": "mean", "dtype": "float16", "max_tokens": 128}


class Backbone:
    """Features that depend on the text alone, and a count of the texts and calls it took to get them."""

    def __init__(self, pooling="mean", width=WIDTH):
        self.pooling, self.width = pooling, width
        self.calls, self.texts = 0, []

    def __call__(self, texts):
        self.calls += 1
        self.texts += texts
        return [self.of(text) for text in texts]

    def of(self, text):
        rng = np.random.default_rng(list(text.encode("utf-8", "surrogatepass")))
        shape = (1 + len(text) % 4, self.width) if self.pooling == "tokens" else (self.width,)
        return rng.standard_normal(shape, np.float32)


def _cache(folder, **options):
    return FeatureCache(UPath(folder), **(KEYS | options))


def _parts(cache):
    return sorted(each for each in cache.folder.iterdir() if each.name.startswith("part-"))


def _same(found, expected, dtype="float16"):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(one, other.astype(dtype))


@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("pooling", ["mean", "first", "tokens"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_second_epoch_makes_no_backbone_call(tmp_path, place, pooling, dtype):
    folder = tmp_path if place == "disk" else f"memory://features/{tmp_path.name}"
    texts = [f"text {n}" for n in range(300)]
    backbone = Backbone(pooling)
    with _cache(folder, pooling=pooling, dtype=dtype, part_rows=64) as cache:
        _same(cache.features(texts, backbone), [backbone.of(text) for text in texts], dtype)
    assert backbone.texts == texts
    again = _cache(folder, pooling=pooling, dtype=dtype)
    order = np.random.default_rng(0).permutation(300)
    for batch in np.split(order, [7, 50, 200]):
        wanted = [texts[n] for n in batch]
        _same(again.features(wanted, backbone), [backbone.of(text) for text in wanted], dtype)
    assert backbone.calls == 1
    assert len(_parts(cache)) == 5


def test_another_process_makes_no_backbone_call(tmp_path):
    code = f"""
from upath import UPath
from engine.corpus import FeatureCache
import numpy as np
with FeatureCache(UPath({str(tmp_path)!r}), **{KEYS!r}) as cache:
    cache.features(["a", "b", "c"], lambda texts: [np.full({WIDTH}, ord(text[0]) / 3, np.float32) for text in texts])
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    found = _cache(tmp_path).features(["c", "a"], lambda _: pytest.fail("the encoder was asked"))
    _same(found, [np.full(WIDTH, ord(letter) / 3, np.float32) for letter in "ca"])


def test_texts_that_repeat_reach_the_backbone_once_and_share_nothing(tmp_path):
    backbone = Backbone()
    cache = _cache(tmp_path)
    found = cache.features(["b", "a", "b", "", "\ud800", "b"], backbone)
    assert backbone.texts == ["b", "a", "", "\ud800"]
    found[0][:] = 9
    found[1][:] = 9
    for _ in range(2):
        _same(cache.features(["b", "a"], backbone), [backbone.of("b"), backbone.of("a")])
        cache.flush()
    assert backbone.calls == 1
    assert cache.features([], backbone) == []


def test_what_changes_the_features_changes_the_folder(tmp_path):
    others = [{"encoder": "f"}, {"layer": 3}, {"pooling": "first"}, {"dtype": "float32"}, {"max_tokens": 64}]
    folders = {_cache(tmp_path, **other).folder for other in [{}, *others]}
    assert len(folders) == 6
    assert json.loads((_cache(tmp_path).folder / "description.json").read_text()) == KEYS


def test_two_writers_at_once_do_not_disturb_each_other(tmp_path):
    one, two = _cache(tmp_path, part_rows=2), _cache(tmp_path, part_rows=3)
    first, second = Backbone(), Backbone()
    one.refresh()
    two.refresh()
    for n in range(10):
        for cache, backbone in ((one, first), (two, second)):
            texts = [f"{n}", f"{n + 1}"]
            _same(cache.features(texts, backbone), [backbone.of(text) for text in texts])
    assert first.texts == second.texts == [f"{n}" for n in range(11)], "neither has looked for the other's parts"
    one.flush()
    two.features(["only two"], second)
    two.flush()
    one.refresh()
    _same(one.features(["only two", "3"], first), [first.of("only two"), first.of("3")])
    assert "only two" not in first.texts


def test_a_killed_writer_leaves_whole_parts_or_nothing(tmp_path):
    code = f"""
import itertools, numpy as np
from upath import UPath
from engine.corpus import FeatureCache
cache = FeatureCache(UPath({str(tmp_path)!r}), **{KEYS!r}, part_rows=50)
for n in itertools.count():
    cache.features([str(n)], lambda texts: [np.full({WIDTH}, n % 100, np.float32)])
"""
    folder = _cache(tmp_path).folder
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        end = time.monotonic() + 60
        while len(list(folder.glob("part-*"))) < 20:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    known = len(list(folder.glob("part-*.parquet"))) * 50
    found = _cache(tmp_path).features([str(n) for n in range(known)], lambda _: pytest.fail("a part is missing"))
    _same(found, [np.full(WIDTH, n % 100) for n in range(known)])


def _cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def _flip_in_values(path):
    body = bytearray(path.read_bytes())
    body[2400] ^= 1  # 100 keys of 16 bytes come first, then 100 values of as many
    path.write_bytes(bytes(body))


def _empty(path):
    path.write_bytes(b"")


def _of_another_kind(path):
    pq.write_table(pa.table({"key": [1], "values": ["x"]}), str(path))


def _of_another_width(path):
    table = pq.read_table(str(path))
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"width": b"3"}), str(path))


@pytest.mark.parametrize(
    ("spoil", "after_listing"),
    [
        *itertools.product([_cut, _flip_in_values, _empty, _of_another_kind], [False, True]),
        (_of_another_width, False),
    ],
)
def test_a_damaged_part_is_skipped_and_computed_anew(tmp_path, capsys, spoil, after_listing):
    texts = [f"text {n}" for n in range(200)]
    with _cache(tmp_path, part_rows=100) as cache:
        cache.features(texts, Backbone())
    cache = _cache(tmp_path)
    if after_listing:
        cache.refresh()
    spoil(_parts(cache)[0])
    backbone = Backbone()
    _same(cache.features(texts, backbone), [backbone.of(text) for text in texts])
    assert len(backbone.texts) == 100
    assert "is skipped" in capsys.readouterr().err
    cache.flush()
    _same(_cache(tmp_path).features(texts, None), [backbone.of(text) for text in texts])


def test_no_flipped_bit_comes_back_as_a_feature(tmp_path, capsys):
    texts = ["a", "bcd", "ef"]
    with _cache(tmp_path, pooling="tokens") as cache:
        cache.features(texts, Backbone("tokens"))
    (part,) = _parts(cache)
    body = part.read_bytes()
    backbone = Backbone("tokens")
    for at in range(0, len(body), 7):
        part.write_bytes(body[:at] + bytes([body[at] ^ (1 << at % 8)]) + body[at + 1 :])
        _same(_cache(tmp_path, pooling="tokens").features(texts, backbone), [backbone.of(text) for text in texts])


def test_a_part_that_has_gone_is_computed_anew(tmp_path, capsys):
    one, two = _cache(tmp_path), _cache(tmp_path)
    backbone = Backbone()
    for cache in (one, two):
        cache.features(["a", "b"], backbone)
    one.flush()
    two.flush()
    reader = _cache(tmp_path)
    reader.refresh()
    _parts(reader)[0].unlink()
    _same(reader.features(["a", "b"], None), [backbone.of("a"), backbone.of("b")])
    _parts(reader)[0].unlink()
    _same(_cache(tmp_path).features(["a"], backbone), [backbone.of("a")])


def test_memory_is_bounded_and_small_memory_gives_the_same(tmp_path):
    texts = [f"text {n}" for n in range(3000)]
    backbone = Backbone(width=512)
    with _cache(tmp_path) as cache:
        cache.features(texts, backbone)
    reader = _cache(tmp_path, memory_mb=1)
    for n in np.random.default_rng(1).permutation(3000)[:200]:
        _same(reader.features([texts[n]], None), [backbone.of(texts[n])])
        assert reader._held <= 1 << 20
    assert reader._held == sum(group.nbytes for group in reader._groups.values()) > 0


def test_a_feature_too_large_for_the_dtype_is_refused(tmp_path):
    cache = _cache(tmp_path)
    for bad in (np.full(WIDTH, 1e6, np.float32), np.full(WIDTH, np.nan, np.float32)):
        with pytest.raises(RecipeError, match="does not fit into float16"):
            cache.features(["a"], lambda _, bad=bad: [bad])
    _same(_cache(tmp_path, dtype="float32").features(["a"], lambda _: [np.full(WIDTH, 1e6)]), [np.full(WIDTH, 1e6)],
          "float32")  # fmt: skip


@pytest.mark.parametrize("bad", [[], [np.zeros(3), np.zeros(3)], [np.zeros((2, 3))], [np.zeros(0)], [np.float32(1)]])
def test_an_encoder_that_gives_another_shape_is_a_programming_error(tmp_path, bad):
    with pytest.raises(ValueError, match="feature"):
        _cache(tmp_path).features(["a"], lambda _: bad)


def test_widths_never_mix(tmp_path):
    with _cache(tmp_path) as cache:
        cache.features(["a"], Backbone(width=4))
    with pytest.raises(ValueError, match="width 4"):
        _cache(tmp_path).features(["b"], Backbone(width=5))


_ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("features"), st.integers(0, 1), st.lists(st.text("ab\0\ud800", max_size=3), max_size=6)),
        st.tuples(st.sampled_from(["flush", "refresh", "reopen"]), st.integers(0, 1), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(_ACTIONS, st.sampled_from(["mean", "tokens"]), st.integers(1, 5))
def test_it_behaves_as_a_dict_whatever_is_done(tmp_path_factory, actions, pooling, part_rows):
    folder = tmp_path_factory.mktemp("cache")
    backbone = Backbone(pooling)

    def opened():
        return _cache(folder, pooling=pooling, part_rows=part_rows)

    caches = [opened(), opened()]
    model = [set(), set()]  # texts that each of the two must know
    written = set()
    for action, which, texts in actions:
        cache = caches[which]
        if action == "features":
            backbone.texts = []
            _same(cache.features(texts, backbone), [backbone.of(text) for text in texts])
            assert not set(backbone.texts) & model[which]
            assert len(set(backbone.texts)) == len(backbone.texts)
            model[which] |= set(texts)
        else:
            getattr(cache, "flush" if action == "reopen" else action)()
            if action == "refresh":
                model[which] |= written
            else:
                written |= model[which]
            if action == "reopen":
                caches[which], model[which] = opened(), set(written)


def test_noise_is_in_units_of_each_dimensions_spread():
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((20_000, 3)) * [1, 100, 0] + [5, 0, 2]).astype(np.float16)
    noisy = with_noise(features, 0.5, rng)
    noise = noisy - features.astype(np.float32)
    assert noisy.dtype == np.float32
    np.testing.assert_allclose(noise.std(0)[:2] / features.astype(np.float32).std(0)[:2], 0.5, rtol=0.03)
    assert not noise[:, 2].any()
    np.testing.assert_array_equal(with_noise(features, 0.0, rng), features.astype(np.float32))
    same = [with_noise(features, 0.5, np.random.default_rng(7)) for _ in range(2)]
    np.testing.assert_array_equal(*same)


@given(st.integers(1, 20), st.floats(0, 1))
def test_dropping_tokens_keeps_the_rest(tokens, share):
    # Powers of two: the sum of those kept says which they were.
    features = (2.0 ** np.arange(tokens))[:, None] * np.ones((1, 2))
    mean = drop_tokens(features, share, np.random.default_rng(3))
    kept = max(1, tokens - round(share * tokens))
    assert mean.shape == (2,)
    assert round(float(mean[0]) * kept).bit_count() == kept
    assert mean[0] == mean[1]


def test_dropping_no_token_is_the_mean_and_needs_tokens():
    features = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float16)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(drop_tokens(features, 0.0, rng), features.astype(np.float32).mean(0))
    assert len({drop_tokens(features, 0.5, rng).tobytes() for _ in range(20)}) > 5
    for bad in (features[0], features[:0]):
        with pytest.raises(ValueError, match="no tokens"):
            drop_tokens(bad, 0.5, rng)

"""Training texts as tokens of a real tokenizer: the same tokens whichever way they are made, the cut in its place."""

import json
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import SourceError
from engine.lintseq import (
    DIFF_TOKEN,
    add_diff_token,
    apply_edit_sequence,
    counting_tokenizer,
    length_quantiles,
    parse_completion,
    prompt_text,
    sample_edit_sequence,
    share_within,
    to_training_text,
    token_lengths,
    training_example,
)
from engine.models import load_tokenizer

INSTRUCTION = "Write a function: café.  \n"
LACKING = "\x04\x06\x13\x14\x16\x1d"
"""The control characters that SmolLM2's vocabulary has no token for."""
CODE = 'def f():\n    x = "<|diff|>"\n<|diff|>\n    return "<|im_end|>", x\n'
EDITS = [
    "@@ -0,0 +1,2 @@\n+def f():\n+    return 1",
    '@@ -1,0 +2 @@\n+    x = "<|diff|>"  # <|diff|> ',
    "@@ -3,0 +4,2 @@\n+\n+\t\ty  =  '\u2028é'",
]


@pytest.fixture(scope="module")
def packaged() -> Any:
    """The tokenizer of SmolLM2, from a package; converted once into the cache."""
    tokenizer = load_tokenizer("pkg:smollm2-135m")
    assert add_diff_token(tokenizer)
    return tokenizer


def trained(style: str) -> Any:
    """A tokenizer trained on the spot, with a token before and one after every text as Llama's and BERT's have."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if style == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="first" if style == "lower" else style, split=False
        )
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if style == "lower":
        tokenizer.normalizer = normalizers.Lowercase()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if style == "bytes" else []
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    tokenizer.train([textwrap.__file__], trainer)
    if style != "bytes":
        tokenizer = bytes_as_ordinary_tokens(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", name_or_path=style
    )


def bytes_as_ordinary_tokens(tokenizer: Any) -> Any:
    """Byte tokens are reached by fallback only; the trainer had registered them as special."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [each for each in state["added_tokens"] if each["id"] < 3]
    return Tokenizer.from_str(json.dumps(state))


@pytest.fixture(scope="module", params=["packaged", "bytes", "first"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "packaged":
        return request.getfixturevalue("packaged")
    made = trained(request.param)
    assert add_diff_token(made)
    return made


def whole_text_tokens(tokenizer: Any, instruction: str, edits: list[str]) -> list[int]:
    """The tokens by the shortest way: the whole text at once, special tokens in it not taken as such."""
    text = to_training_text(instruction, edits)
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    front = [tokenizer.bos_token_id] if tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id else []
    return [*front, *ids, tokenizer.eos_token_id]


def test_the_diff_token_is_one_ordinary_token(packaged: Any) -> None:
    size = len(packaged)
    assert not add_diff_token(packaged)
    assert len(packaged) == size
    ids = packaged(f" \n {DIFF_TOKEN} \n ")["input_ids"]
    assert ids.count(packaged.convert_tokens_to_ids(DIFF_TOKEN)) == 1
    assert packaged.decode(ids, skip_special_tokens=True) == f" \n {DIFF_TOKEN} \n "
    assert DIFF_TOKEN not in packaged.all_special_tokens


def test_the_diff_token_survives_saving(packaged: Any, tmp_path: Path) -> None:
    packaged.save_pretrained(tmp_path)
    again = counting_tokenizer(str(tmp_path))
    assert not add_diff_token(again)
    assert training_example(again, INSTRUCTION, EDITS) == training_example(packaged, INSTRUCTION, EDITS)


def test_the_tokens_are_those_of_the_whole_text(tokenizer: Any) -> None:
    example = training_example(tokenizer, INSTRUCTION, EDITS)
    assert example.input_ids == whole_text_tokens(tokenizer, INSTRUCTION, EDITS)
    assert (example.edits, example.truncated) == (3, False)
    text = to_training_text(INSTRUCTION, EDITS)
    assert tokenizer.decode(example.input_ids[example.loss_from :]) == text[example.loss_from_char :] + (
        tokenizer.eos_token
    )
    assert text[: example.loss_from_char] == prompt_text(INSTRUCTION)


def test_the_prompt_is_what_inference_gives(tokenizer: Any) -> None:
    example = training_example(tokenizer, INSTRUCTION, EDITS)
    given = tokenizer(prompt_text(INSTRUCTION))["input_ids"]
    # What a tokenizer puts behind every text is nothing a model continues.
    given = given[:-1] if given[-1] == tokenizer.eos_token_id else given
    assert example.input_ids[: example.loss_from] == given


@settings(max_examples=150, deadline=None)
@given(
    instruction=st.text(st.characters(codec="utf-8", exclude_characters=LACKING, max_codepoint=0x3FFFF), max_size=12),
    edits=st.lists(
        st.text(st.characters(codec="utf-8"), max_size=12)
        | st.sampled_from([*EDITS, DIFF_TOKEN, f"\n{DIFF_TOKEN}", ""]),
        max_size=5,
    ),
)
def test_pieces_and_the_whole_agree_on_any_text(packaged: Any, instruction: str, edits: list[str]) -> None:
    example = training_example(packaged, instruction, edits, max_tokens=10_000)
    assert example.input_ids == whole_text_tokens(packaged, instruction, edits)
    assert token_lengths(packaged, [instruction], [edits]) == [len(example.input_ids)]
    text = packaged.decode(example.input_ids[:-1], clean_up_tokenization_spaces=False)
    assert (text == to_training_text(instruction, edits)) == example.exact


def test_code_that_holds_the_tokens_comes_back(packaged: Any) -> None:
    edits = sample_edit_sequence(CODE, seed=3)
    example = training_example(packaged, "Do it.", edits)
    assert example.input_ids.count(packaged.eos_token_id) == 1
    assert example.input_ids.count(packaged.convert_tokens_to_ids(DIFF_TOKEN)) == len(edits) + 2 + CODE.count(
        DIFF_TOKEN
    )
    generated = packaged.decode(example.input_ids[example.loss_from :])
    parsed = parse_completion(generated, packaged.eos_token)
    assert parsed == edits
    assert apply_edit_sequence(parsed) == CODE


def test_special_tokens_of_a_template_stay_special_in_the_prompt_only(packaged: Any) -> None:
    example = training_example(packaged, "<|im_start|>user\nDo it.<|im_end|>", ["@@ -0,0 +1 @@\n+'<|im_end|>'"])
    assert example.input_ids[: example.loss_from].count(packaged.eos_token_id) == 1
    assert example.input_ids[example.loss_from :].count(packaged.eos_token_id) == 1


def test_a_cut_keeps_whole_edits_and_never_the_ending(tokenizer: Any) -> None:
    full = training_example(tokenizer, INSTRUCTION, EDITS)
    text = to_training_text(INSTRUCTION, EDITS)
    seen = set()
    for limit in range(1, len(full.input_ids)):
        cut = training_example(tokenizer, INSTRUCTION, EDITS, max_tokens=limit)
        assert cut.truncated
        assert len(cut.input_ids) <= limit
        assert cut.input_ids == full.input_ids[: len(cut.input_ids)]
        assert cut.loss_from == min(full.loss_from, limit)
        if cut.edits:
            written = tokenizer.decode(cut.input_ids[cut.loss_from :])
            assert parse_completion(written) == EDITS[: cut.edits]
            assert written.endswith(f"\n{DIFF_TOKEN}")
            assert text[cut.loss_from_char :].startswith(written)
        else:
            assert cut.loss_from == len(cut.input_ids)
        seen.add(cut.edits)
    assert seen == {0, 1, 2, 3}
    assert training_example(tokenizer, INSTRUCTION, EDITS, max_tokens=len(full.input_ids)) == full


def test_a_cut_by_tokens_is_the_references(tokenizer: Any) -> None:
    full = training_example(tokenizer, INSTRUCTION, EDITS)
    for limit in range(1, len(full.input_ids)):
        cut = training_example(tokenizer, INSTRUCTION, EDITS, max_tokens=limit, truncation="token")
        assert cut.input_ids == full.input_ids[:limit]
        assert cut.truncated
        assert cut.edits == training_example(tokenizer, INSTRUCTION, EDITS, max_tokens=limit).edits


def test_an_empty_program_is_the_ending_alone(packaged: Any) -> None:
    example = training_example(packaged, "", [])
    assert packaged.decode(example.input_ids) == f"\n{DIFF_TOKEN}\n{DIFF_TOKEN}{packaged.eos_token}"
    assert (example.edits, example.truncated) == (0, False)
    assert example.loss_from < len(example.input_ids)


def test_lengths_are_those_of_the_examples(tokenizer: Any, stdlib_functions: list[str]) -> None:
    programs = stdlib_functions[:300]
    sequences = [sample_edit_sequence(program, seed=1) for program in programs]
    instructions = [program.partition("\n")[0] for program in programs]
    lengths = token_lengths(tokenizer, instructions, sequences)
    assert lengths[:40] == [
        len(training_example(tokenizer, instruction, edits, max_tokens=10**6).input_ids)
        for instruction, edits in zip(instructions[:40], sequences[:40], strict=True)
    ]
    assert len(lengths) == 300
    assert token_lengths(tokenizer, [], []) == []


def test_the_numbers_of_a_report() -> None:
    counts = Counter({10: 50, 20: 40, 1500: 10})
    assert share_within(counts, 1024) == 0.9
    assert length_quantiles(counts) == [10, 20, 1500, 1500]
    assert length_quantiles(counts, [0.0, 0.51]) == [10, 20]
    assert length_quantiles({}) == []
    assert share_within({}, 1024) == 1.0


def special(tokenizer: Any) -> None:
    tokenizer.add_tokens([DIFF_TOKEN], special_tokens=True)


def endless(tokenizer: Any) -> None:
    tokenizer.eos_token = None


@pytest.mark.parametrize(
    ("style", "damage", "said"),
    [
        ("bytes", special, "one ordinary token"),
        ("bytes", endless, "no end-of-sequence token"),
        ("always", None, "changes the code"),
        ("lower", None, "changes the code"),
    ],
)
def test_a_tokenizer_that_cannot_do_is_refused(style: str, damage: Callable[[Any], None] | None, said: str) -> None:
    tokenizer = trained(style)
    if damage is not None:
        damage(tokenizer)
    with pytest.raises(SourceError, match=said):
        add_diff_token(tokenizer)


def test_a_diff_token_that_took_the_space_beside_it_is_mended() -> None:
    from tokenizers import AddedToken

    tokenizer = trained("bytes")
    tokenizer.add_tokens([AddedToken(DIFF_TOKEN, lstrip=True, rstrip=True)])
    assert len(tokenizer(f" {DIFF_TOKEN}\n", add_special_tokens=False)["input_ids"]) == 1
    assert not add_diff_token(tokenizer)
    assert len(tokenizer(f" {DIFF_TOKEN}\n", add_special_tokens=False)["input_ids"]) == 3


@pytest.mark.parametrize("character", [*LACKING, "\U00040000"])
def test_an_example_that_loses_a_character_says_so(packaged: Any, character: str) -> None:
    edit = f"@@ -0,0 +1 @@\n+x = '{character}'"
    assert not training_example(packaged, "", [edit]).exact
    assert training_example(packaged, character, EDITS).exact


def test_a_tokenizer_without_the_diff_token_is_a_mistake() -> None:
    tokenizer = trained("bytes")
    with pytest.raises(ValueError, match="add_diff_token"):
        training_example(tokenizer, "", [])
    with pytest.raises(ValueError, match="add_diff_token"):
        token_lengths(tokenizer, [""], [[]])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pkg:no-such-package", "There is no packaged model"),
        ("pkg:os.path", "There is no packaged model"),
        ("/no/such/folder", "There is no model at"),
        ("~nobody/folder", "There is no model at"),
        ("not a\0name", "There is no model at"),
        ("./folder", "There is no model at"),
    ],
)
def test_a_tokenizer_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        counting_tokenizer(name)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": 3}}'),
        ("model.gguf", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64),
        ("model.gguf", b""),
        ("readme.md", b"nothing"),
    ],
)
def test_a_damaged_tokenizer(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(SourceError, match="cannot be read") as caught:
        counting_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_code_that_comes_with_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", null]}}'
    )
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    with pytest.raises(SourceError):
        counting_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_importing_the_module_imports_no_library_of_models() -> None:
    code = "import sys, engine.lintseq.training; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "tokenizers", "ray"} & set(loaded)

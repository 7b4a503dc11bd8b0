"""Language identification: right on plain cases, the same every time, and never over the network."""

import subprocess
import sys

import pytest

from engine.corpus.language import check_languages, identify
from engine.errors import RecipeError

SENTENCES = {
    "en": "The committee will meet again on Thursday to discuss the plans for the new library.",
    "de": "Der Ausschuss trifft sich am Donnerstag wieder, um die Pl\u00e4ne zu besprechen.",
    "fr": "Le comit\u00e9 se r\u00e9unira de nouveau jeudi pour discuter des projets de biblioth\u00e8que.",
    "ru": "Комитет соберется в четверг.",
    "zh": "委员会将于星期四再次开会讨论计划。",
}


def test_plain_sentences_are_told_apart() -> None:
    found = identify(SENTENCES.values())
    assert [each.code for each in found] == list(SENTENCES)
    assert all(each.score > 0.8 for each in found)


def test_texts_with_nothing_to_go_by_get_a_low_score() -> None:
    assert all(each.score < 0.5 for each in identify(["", "   \n", "1234", "\x00"]))


def test_only_the_beginning_of_a_text_counts_and_line_breaks_do_not() -> None:
    english = SENTENCES["en"]
    assert identify([english.replace(" ", "\n")]) == identify([english])
    assert identify([english * 50 + SENTENCES["ru"] * 500]) == identify([english * 50])


def test_unknown_codes_are_refused() -> None:
    check_languages(list(SENTENCES))
    with pytest.raises(RecipeError, match=r"no language 'deu'\. Use ISO 639"):
        check_languages(["en", "deu"])


OFFLINE = """
import socket, sys
def refuse(*arguments, **keys):
    raise AssertionError("went to the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from engine.corpus.language import identify
print(identify(sys.argv[1:]))
"""


def test_a_process_without_network_says_the_same() -> None:
    command = [sys.executable, "-c", OFFLINE, *SENTENCES.values()]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output.strip() == str(identify(SENTENCES.values()))

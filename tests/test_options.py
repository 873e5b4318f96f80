"""Numbers and texts on the command line that nobody can mean are refused by the option's name, before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentsynth.cli import main

LIST = [
    ("phantom --out OUT --seed -1", "--seed -1"),
    ("phantom --out OUT --seed 18446744073709551616", "--seed 18446744073709551616"),
    ("phantom --out OUT --seed 9223372036854775808", "--seed"),
    ("phantom --out OUT --size 2048", "--size"),
    ("demo --out OUT --seed -1", "--seed -1"),
    ("plan NONE --hours inf", "--hours"),
    ("plan NONE --hours nan", "--hours"),
    ("plan NONE --hours 0", "--hours"),
    ("plan NONE --hours -1", "--hours"),
    ("prepare NONE --out OUT --fractions nan 0.5 0.5", "--fractions nan"),
    ("prepare NONE --out OUT --patient (", "--patient '('"),
    ("sample NONE --masks NONE --out OUT --per-mask 1000000000", "--per-mask"),
    ("sample NONE --count 1000000000 --out OUT", "--count"),
    ("sample NONE --masks NONE --out OUT --seed -1", "--seed -1"),
    ("sample NONE --masks NONE --out OUT --guidance nan", "--guidance"),
    ("sample NONE --masks NONE --out OUT --margin-mm inf", "--margin-mm inf"),
    ("sample NONE --masks NONE --out OUT --truncation nan", "--truncation"),
    ("masks --real NONE --out OUT --lesions 1:inf", "--lesions '1:inf'"),
    ("masks --real NONE --out OUT --lesions 1.5:2", "--lesions '1.5:2'"),
    ("masks --real NONE --out OUT --lesions 3:1", "--lesions '3:1'"),
    ("masks --real NONE --out OUT --volume-ml nan:5", "--volume-ml 'nan:5'"),
    ("masks --real NONE --out OUT --volume-ml -5:5", "--volume-ml '-5:5'"),
    ("masks --real NONE --out OUT --n 10000000000", "--n"),
    ("balance NONE --by site --site ( --out OUT", "--site '('"),
    ("balance NONE --by site --out OUT --seed -1", "--seed -1"),
    ("memorization --train NONE --heldout NONE --samples a=b --out OUT --level nan", "--level"),
    ("filter NONE --out OUT --segmenter NONE --least-dice nan", "--least-dice"),
    ("evaluate segmenter NONE NONE --out OUT --tolerance-mm inf", "--tolerance-mm inf"),
    ("export NONE --out OUT --licence BLANK", "--licence ' '"),
    ("export NONE --out OUT --licence CC|BY", "--licence 'CC|BY'"),
    ("export NONE --out OUT --licence [CC](http://x)", "--licence"),
    ("export NONE --out OUT --licence LINES", "--licence"),
    ("export NONE --out OUT --licence CC --without-privacy-report <b>", "--without-privacy-report '<b>'"),
]


@pytest.mark.parametrize(("line", "words"), LIST, ids=[line for line, _ in LIST])
def test_an_impossible_value_is_refused_by_name(
    line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"OUT": str(tmp_path / "out"), "NONE": str(tmp_path / "none"), "BLANK": " ", "LINES": "CC\nBY"}
    with pytest.raises(SystemExit) as caught:
        main([told.get(word, word) for word in line.split()])
    err = capsys.readouterr().err
    assert caught.value.code == 2, err
    assert words in " ".join(part.strip() for part in err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()

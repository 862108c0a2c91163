"""Every prompt source, and what is said about those that cannot be used."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from amsd.errors import UsageError
from amsd.prompts import PromptError, load_prompts
from amsd.prompts.load import token_counts

CAT, DOG = "a photo of a cat", 'a dog, "running"'


def _text(path: Path) -> None:
    path.write_bytes(f"\ufeff{CAT}\r\n{DOG}\r\n".encode())  # as Windows editors write it


def _json(path: Path) -> None:
    path.write_text(json.dumps([CAT, {"text": DOG, "image": "005695-0057"}]), encoding="utf-8")


def _jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in ({"prompt": CAT}, DOG)), encoding="utf-8")


def _csv(path: Path) -> None:
    path.write_text(f'id,prompt\n1,{CAT}\n2,"a dog, ""running"""\n', encoding="utf-8")


def _parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [CAT, DOG], "rank": [1, 2]}), path)


FORMATS: dict[str, Callable[[Path], None]] = {
    ".txt": _text,
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_reads_the_same_prompts(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts{suffix}"
    FORMATS[suffix](path)
    assert load_prompts(str(path)).texts == (CAT, DOG)


def test_identity_is_that_of_the_texts_wherever_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    _text(path)
    expected = hashlib.sha256(json.dumps([CAT, DOG]).encode()).hexdigest()
    assert load_prompts(str(path)).identity == load_prompts((CAT, DOG)).identity == expected
    assert load_prompts((DOG, CAT)).identity != expected


def test_duplicates_and_empty_prompts_are_left_out_and_reported() -> None:
    prompts = load_prompts([CAT, "", DOG, f" {CAT} ", "\t", CAT])
    assert prompts.texts == (CAT, DOG)
    assert (prompts.duplicates, prompts.empty, len(prompts)) == (2, 2, 2)
    repeated, empty = prompts.remarks
    assert "2 repeated prompts" in repeated
    assert "2 empty prompts" in empty


def test_a_clean_source_has_no_remarks() -> None:
    assert load_prompts([CAT, DOG]).remarks == ()


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\x0ctwo\u2028three\n", encoding="utf-8")
    assert len(load_prompts(str(path))) == 1


@pytest.mark.parametrize(("name", "least"), [("embedded:shapes", (56, 16)), ("embedded:general", (800, 100))])
def test_embedded_splits_are_clean_and_share_no_prompt(name: str, least: tuple[int, int]) -> None:
    train, held_out = load_prompts(name, "train"), load_prompts(name, "evaluation")
    assert len(train) >= least[0]
    assert len(held_out) >= least[1]
    assert not set(train.texts) & set(held_out.texts)
    assert train.remarks == held_out.remarks == ()
    # Words of English are at most a few tokens each: none comes near the 77 that CLIP reads.
    assert all(text.isascii() and len(text.split()) <= 20 for text in (*train.texts, *held_out.texts))


def test_the_first_general_prompts_already_vary() -> None:
    first = load_prompts("embedded:general", "evaluation").texts[:32]
    assert len({word for text in first for word in text.split()}) >= 120


def test_a_hub_data_set_is_read_by_split_and_column(tmp_path: Path) -> None:
    # A local folder goes through the same loader as a data set of the hub.
    folder = tmp_path / "owner"
    folder.mkdir()
    for split, prompt in (("train", CAT), ("test", DOG)):
        table = pyarrow.table({"prompt": [prompt], "caption": [f"{prompt}!"]})
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    assert load_prompts(f"hub:{folder}").texts == (CAT,)
    assert load_prompts(f"hub:{folder}:test").texts == (DOG,)
    assert load_prompts(f"hub:{folder}:test:caption").texts == (f"{DOG}!",)
    with pytest.raises(PromptError, match="no column 'nothing'; there are prompt, caption"):
        load_prompts(f"hub:{folder}:test:nothing")
    with pytest.raises(PromptError, match="cannot be loaded"):
        load_prompts(f"hub:{folder}:nosplit")


@pytest.mark.parametrize("source", ["hub:owner/name:train:prompt", "hub:owner/name/metadata-test.parquet"])
def test_an_unreachable_hub_is_said_at_once(source: str) -> None:
    with pytest.raises(PromptError, match=rf"{source}: .*is not in the local cache.*HF_HUB_OFFLINE is set"):
        load_prompts(source)


@pytest.mark.parametrize("source", ["hub:owner/name", "hub:owner/name/prompts.json"])
def test_a_silent_hub_is_noticed_without_retries(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody listens here once it is closed
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(PromptError, match=r"the hub cannot be reached .*refused.*Download it once while online"):
        load_prompts(source)


class WordTokenizer:
    """One token a word, between a start and an end token, as CLIP's tokenizer counts."""

    def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]:
        assert options["truncation"] is False
        return {"input_ids": [[0, *range(len(text.split())), 0] for text in texts]}


def test_tokens_are_counted_with_the_special_ones() -> None:
    assert token_counts(["one two three", "one two three four", "one"], WordTokenizer()) == [5, 6, 3]


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty text": ("p.txt", b"", "holds no prompt"),
    "blank text": ("p.txt", b"\n  \n\t\n", "holds no prompt (3 entries, all of them empty)"),
    "binary text": ("p.txt", b"a cat\na \x00 dog\n", "p.txt, line 2: holds a NUL character"),
    "latin-1 text": ("p.txt", "a cat\nun chien frisé\n".encode("latin-1"), "p.txt, line 2: is not UTF-8 text"),
    "cut json": ("p.json", b'["a cat",\n "a dog"', "p.json, line 2: is not valid JSON"),
    "json object": ("p.json", b'{"text": "a cat"}', "must be a list of prompts, but is an object"),
    "json number": ("p.json", b'["a cat", 7]', "p.json, entry 2: a prompt must be a string, but is the number 7"),
    "json null": ("p.json", b"[null]", "entry 1: a prompt must be a string, but is null"),
    "json without key": (
        "p.json",
        b'[{"label": "x"}]',
        "entry 1: has no column named 'text', 'prompt', 'prompts', 'caption', 'captions', but 'label'",
    ),
    "json wrong value": ("p.json", b'[{"text": ["x"]}]', "entry 1, 'text': a prompt must be a string, but is a list"),
    "json deep": ("p.json", b"[" * 200_000, "nested too deeply"),
    "empty json": ("p.json", b"[]", "holds no prompt"),
    "jsonl line": ("p.jsonl", b'"a cat"\n\n{"text": \n', "p.jsonl, line 3: is not valid JSON"),
    "jsonl value": ("p.jsonl", b'"a cat"\ntrue\n', "p.jsonl, line 2: a prompt must be a string, but is a truth value"),
    "json in jsonl": ("p.jsonl", b'["a cat", "a dog"]\n', "p.jsonl, line 1: a prompt must be a string, but is a list"),
    "empty csv": ("p.csv", b"", "is empty; the first line names the columns"),
    "csv column": ("p.csv", b"id,label\n1,x\n", "but 'id', 'label'. Say which one holds the prompts: prompts.column."),
    "csv comma": ("p.csv", b"id,text\n1,x\n2,a cat, running\n", "p.csv, line 3: has 3 fields, but the header names 2"),
    "csv quote": ("p.csv", b'text\n"a cat\n', "is not valid CSV"),
    "csv header only": ("p.csv", b"text\n", "holds no prompt"),
    "parquet": ("p.parquet", b"PAR1 but not really", "is not a Parquet file"),
    "packed": ("p.CSV.gz", b"\x1f\x8b", "unknown format '.gz'; prompt files are .txt, .json"),
    "unknown format": ("p.yaml", b"- a cat\n", "unknown format '.yaml'; prompt files are .txt, .json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_with_the_place(name: str, tmp_path: Path) -> None:
    file, content, message = BROKEN[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(PromptError) as caught:
        load_prompts(str(path))
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.txt", "no such prompt file (looked in"),
        ("a photo of a cat", 'write a list: ["a photo of a cat"]'),
        ("embedded:cats", "there are embedded:general, embedded:shapes"),
        ("hub:", "must have the form hub:ID"),
        ("hub: :train", "must have the form hub:ID"),
        ("hub:a b/c", "is neither a folder nor a hub id"),
        ("hub:owner/name/prompts.csv:train", "a single file has no split; write hub:owner/name/prompts.csv"),
    ],
)
def test_wrong_sources_are_explained(source: str, message: str) -> None:
    with pytest.raises(PromptError) as caught:
        load_prompts(source)
    assert message in str(caught.value)


def test_a_folder_is_not_a_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="is a folder"):
        load_prompts(str(tmp_path))


def test_parquet_columns_and_rows_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"label": ["x"]}), path)
    with pytest.raises(PromptError, match=r"but 'label'\. Say which one"):
        load_prompts(str(path))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None]}), path)
    with pytest.raises(PromptError, match="row 2: a prompt must be a string, but is null"):
        load_prompts(str(path))


TABLES = {
    "parti.tsv": 'Prompt\tCategory\na red circle\tAbstract\na "blue" square\tAbstract\n',
    "quotes.tsv": 'Prompt\tCategory\na red circle\tAbstract\n"blue" is a word\tAbstract\n',
    "drawbench.csv": 'Prompts,Category\r\n"a red circle",Colors\r\na cat,Counting\r\n',
    "captions.NDJSON": '{"caption": "a red circle", "id": 1}\n{"caption": "a cat", "id": 2}\n',
    "captions.jsonl": '{"caption": "a red circle", "id": 1}\n{"caption": "a cat", "id": 2}\n',
    "upper.json": '[{"PROMPT": "a red circle"}, {"Caption": "a cat"}]',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_the_field_are_read_by_their_usual_columns(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + TABLES[name].encode())
    texts = load_prompts(str(path)).texts
    assert texts[0] == "a red circle"
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "prompt,label\nno,yes\n"),
        ("p.tsv", "prompt\tlabel\nno\tyes\n"),
        ("p.json", '[{"prompt": "no", "label": "yes"}]'),
    ],
)
def test_a_named_column_is_taken_or_missed_by_name(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert load_prompts(str(path), column="label").texts == ("yes",)
    with pytest.raises(PromptError, match=r"no column 'labels' \(prompts.column\).*'prompt', 'label'"):
        load_prompts(str(path), column="labels")


def test_of_several_columns_the_first_is_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, content in (("a.csv", "Caption,prompt\nno,yes\n"), ("a.json", '[{"caption": "no", "prompt": "yes"}]')):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert load_prompts(str(tmp_path / name)).texts == ("yes",)
        (said,) = [text for text in caplog.messages if name in text]
        assert "amsd reads the column 'prompt'" in said
        assert "Set prompts.column to choose" in said
    assert load_prompts(str(tmp_path / "a.json"), column="caption").texts == ("no",)


def test_no_format_hides_a_nul(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt\na\0b\n")
    with pytest.raises(PromptError, match="entry 1: holds a NUL character"):
        load_prompts(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("divider", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_the_header_says_what_divides_a_table(divider: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"table.{suffix}"
    file.write_text(f'Prompt{divider}Category\n"a red{divider} blue cat"{divider}x\n', encoding="utf-8")
    assert load_prompts(str(file)).texts == (f"a red{divider} blue cat",)
    file.write_text(f"Titel{divider}Nummer\na cat{divider}1\n", encoding="utf-8")
    assert load_prompts(str(file), "train", "Titel").texts == ("a cat",)


@pytest.mark.parametrize(("name", "content", "words"), [
    ("x.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a git-lfs pointer"),
    ("x.parquet", b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
    ("x.txt", b"<!DOCTYPE html><html>Sign in", "is a web page"), ("x.csv", "prompt\na".encode("utf-16-be"), "UTF-8"),
    ("x.txt", "a cat".encode("utf-16"), "Save the file as UTF-8"),
])  # fmt: skip
def test_what_is_no_prompt_file_is_no_prompt(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=words):
        load_prompts(str(tmp_path / name))

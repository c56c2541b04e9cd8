"""Calibration rows: from JSONL files to token ids, the same ones each time.

A calibration is that of a checkpoint's identity, or of the study's config: one data set (`dataset`, `split`,
`chat_template`) or a `mix` of them with shares, and `samples`, `max_tokens` and `seed` of the whole.
"""

import hashlib
import json
import random

from quantbench.errors import UserError
from quantbench.keys import canonical_json


def parts(calibration):
    """The data sets that a calibration reads: [{"dataset", "split", "chat_template", and in a mix "share"}]."""
    return calibration.get("mix") or [calibration]


def shares(calibration):
    return [part.get("share", 1) for part in parts(calibration)]


def rows_of_parts(shares, rows):
    """How many of `rows` each part gives, in proportion to its share; what rounding leaves goes to the largest remainders.

    3 rows of shares 1 and 1: 1.5 each, so 2 and 1.
    """
    exact = [rows * share / sum(shares) for share in shares]
    counts = [int(count) for count in exact]
    order = sorted(range(len(shares)), key=lambda part: counts[part] - exact[part])
    for part in order[: rows - sum(counts)]:
        counts[part] += 1
    return counts


def chosen_rows(available, calibration, held_out=0):
    """[(part, row number)] of the calibration's rows, in their order.

    Of each part the first ones of a shuffle by `seed`; those of a mix are shuffled together.

    available  rows that each part has
    held_out   so many rows instead from the end of the same shuffles, then, where there are no more, the first ones
    """
    draw = random.Random(calibration["seed"])
    wanted = rows_of_parts(shares(calibration), calibration["samples"])
    others = rows_of_parts(shares(calibration), held_out)
    chosen = []
    for part, (rows, count, other) in enumerate(zip(available, wanted, others, strict=True)):
        order = list(range(rows))
        draw.shuffle(order)
        # From the far end: a calibration of more rows of the same shuffle has them last, too.
        taken = (order[: count - 1 : -1] + order[:count])[:other] if held_out else order[:count]
        chosen += [(part, number) for number in taken]
    if len(available) > 1:
        draw.shuffle(chosen)
    return chosen


def calibration_texts(paths, calibration, held_out=0):
    """[(text or turns, whether it is turns)] of a calibration's rows, as chosen_rows chooses them.

    paths: the JSONL file of each part. Rows with `question` and `answer` become an accuracy task's example or, through a chat
    template, a user's turn and its answer; rows with `text` are taken as they are. Raises UserError for a row with
    neither, for a text that is to be turns, and where a file has too few rows.
    """
    files = [_lines(path) for path in paths]
    wanted = rows_of_parts(shares(calibration), calibration["samples"])
    for path, lines, rows in zip(paths, files, wanted, strict=True):
        if len(lines) < rows:
            raise UserError(f"calibration.samples wants {rows} rows of {path}, which has only {len(lines)}")
    found = []
    for part, number in chosen_rows([len(lines) for lines in files], calibration, held_out):
        turns = bool(parts(calibration)[part].get("chat_template"))
        found.append((_text(files[part][number], f"{paths[part]}, row {number + 1}", turns), turns))
    return found


def _lines(path):
    with open(path) as file:
        return [line for line in file if line.strip()]


def _text(line, where, turns):
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON: {error}") from error
    if isinstance(row, dict) and "question" in row and "answer" in row:
        if turns:
            said = (("user", row["question"]), ("assistant", row["answer"]))
            return [{"role": role, "content": str(content)} for role, content in said]
        return f"Question: {row['question']}\nAnswer: {row['answer']}\n\n"
    if turns:
        raise UserError(f"{where}: has no question and answer, which chat_template: true makes turns of")
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return row["text"]
    raise UserError(f"{where}: has neither question and answer nor text")


def token_rows(texts, tokenizer):
    """Token ids of each row that calibration_texts gave. A chat template writes the special tokens itself."""
    found = []
    for text, turns in texts:
        if turns:
            text = tokenizer.apply_chat_template(text, tokenize=False)
        found.append(tokenizer(text, add_special_tokens=not turns)["input_ids"])
    return found


def calibration_tokens(token_ids, max_tokens, vocabulary):
    """Each row's token ids cut to `max_tokens`. Raises UserError for an empty row and for ids beyond the model.

    vocabulary: rows of the model's embedding, a count.
    """
    rows = [row[:max_tokens] for row in token_ids]
    if not all(rows):
        raise UserError("a calibration row has no token; its text is empty")
    highest = max(max(row) for row in rows)
    if highest >= vocabulary:
        raise UserError(
            f"the tokenizer gives token {highest}, but the model's embedding has only {vocabulary} rows; "
            "the tokenizer belongs to another model"
        )
    return rows


def described(rows):
    """{"rows", "tokens", "sha256"} of token rows: what a checkpoint's record says of the very text it was made with."""
    digest = hashlib.sha256(canonical_json(rows).encode()).hexdigest()
    return {"rows": len(rows), "tokens": sum(map(len, rows)), "sha256": digest}

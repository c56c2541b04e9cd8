"""Calibration rows: from a JSONL file to token ids, the same ones each time."""

import json
import random

from quantbench.errors import UserError


def calibration_texts(path, samples, seed):
    """`samples` texts of a JSONL file: the first ones of a shuffle seeded with `seed`.

    Rows with `question` and `answer` become an accuracy task's example, rows with `text` are taken as they are.
    Raises UserError for a row with neither, and where the file has too few rows.
    """
    with open(path) as file:
        lines = [line for line in file if line.strip()]
    if len(lines) < samples:
        raise UserError(f"calibration.samples is {samples}, but {path} has only {len(lines)} rows")
    order = list(range(len(lines)))
    random.Random(seed).shuffle(order)
    return [_text(lines[number], f"{path}, row {number + 1}") for number in order[:samples]]


def _text(line, where):
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON: {error}") from error
    if isinstance(row, dict) and "question" in row and "answer" in row:
        return f"Question: {row['question']}\nAnswer: {row['answer']}\n\n"
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return row["text"]
    raise UserError(f"{where}: has neither question and answer nor text")


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

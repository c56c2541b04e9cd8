"""Invented rows in the columns of lm-eval's tasks, as the hub would serve them: for tests of staging and scoring.

The first two rows of a task are what its tests look at; nothing is taken from the real data sets.
"""

import json

NUMBERS = ("one", "two", "three", "four", "five", "six")


def _jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _card(configs):
    """A data set card: {configuration: splits}, its files <configuration>/<split>.jsonl."""
    lines = ["---", "configs:"]
    for name, splits in configs.items():
        files = ", ".join(f"{{split: {split}, path: {name}/{split}.jsonl}}" for split in splits)
        lines.append(f"- {{config_name: {name}, data_files: [{files}]}}")
    return "\n".join([*lines, "---", ""]).encode()


def repository(configs):
    """{path: bytes} of a data set of {configuration: {split: rows}}."""
    files = {"README.md": _card(configs)}
    for name, splits in configs.items():
        files |= {f"{name}/{split}.jsonl": _jsonl(rows) for split, rows in splits.items()}
    return files


def hellaswag(count=4):
    return [
        {
            "ind": n,
            "activity_label": "Counting",
            "ctx_a": f"A child counts {NUMBERS[n]} shells.",
            "ctx_b": "then the child",
            "endings": ["puts them in a bucket.", "[header] flies away.", "eats the sea.", "is a shell."],
            "label": str(n % 4),
        }
        for n in range(count)
    ]


def winogrande(count=4):
    sentence = "The cup did not fit in the box because the _ was too big."
    rows = [{"sentence": sentence, "option1": "cup", "option2": "box", "answer": str(n % 2 + 1)} for n in range(count)]
    return rows


def arc(count=4):
    labels = ["A", "B", "C", "D"]
    choices = {"text": ["a stone", "a cloud", "a river", "a lamp"], "label": labels}
    return [
        {"id": f"q{n}", "question": f"What gives light, number {n}?", "choices": choices, "answerKey": labels[n % 4]}
        for n in range(count)
    ]


def mmlu(subject, count):
    choices = ["a bone", "a star", "a law", "a song"]
    return [
        {"question": f"What is {subject} about, {NUMBERS[n]}?", "subject": subject, "choices": choices, "answer": n % 4}
        for n in range(count)
    ]


def wikitext(count=3):
    return [
        {"page": f" = Shells = \n A shell , number {n} , is hard @-@ edged . It has {n} sides . \n"}
        for n in range(count)
    ]


def serve(hub):
    """Put all of them on a FakeHub; returns {name: commit}. ARC and winogrande have a split that no prompt takes."""
    sets = {
        "Rowan/hellaswag": {"default": {"train": hellaswag(), "validation": hellaswag()}},
        "allenai/winogrande": {"winogrande_xl": {"train": winogrande(), "validation": winogrande(3)}},
        "allenai/ai2_arc": {
            "ARC-Easy": {"train": arc(), "validation": arc(2), "test": arc(3)},
            "ARC-Challenge": {"train": arc(), "validation": arc(2), "test": arc(3)},
        },
        "cais/mmlu": {
            subject: {"dev": mmlu(subject, 5), "test": mmlu(subject, 2), "validation": mmlu(subject, 1)}
            for subject in ("anatomy", "astronomy")
        },
        "EleutherAI/wikitext_document_level": {
            "wikitext-2-raw-v1": {"train": wikitext(1), "validation": wikitext(1), "test": wikitext()}
        },
    }
    return {name: hub.dataset(name).commit(repository(configs)) for name, configs in sets.items()}

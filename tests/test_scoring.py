"""Tasks of lm-eval on the engine that serves: staged from a hub, scored on the tiny model, offline, twice; and fidelity.

One engine start measures everything that most of these tests look at. The real GSM8K is read where it is at hand:
QUANTBENCH_GSM8K, or ../shared/gsm8k beside this checkout, names a folder with its train.jsonl and test.jsonl.
"""

import collections
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import task_data
import yaml
from fake_hub import FakeHub
from quantbench import sources
from quantbench.jobs import build_jobs, text
from quantbench.manifest import build_manifest
from quantbench.study import load_study
from quantbench.tables import build_tables

ROOT = Path(__file__).parents[1]
GSM8K = Path(os.environ.get("QUANTBENCH_GSM8K", ROOT.parent / "shared" / "gsm8k"))
needs_gsm8k = pytest.mark.skipif(
    not (GSM8K / "test.jsonl").is_file(), reason=f"no real GSM8K: QUANTBENCH_GSM8K, or {GSM8K}, has no test.jsonl"
)
pytestmark = pytest.mark.engine

TASKS = ["hellaswag", "winogrande", "arc_easy", "arc_challenge", "wikitext"]
# A user's own: a group of lm-eval's tasks, and a task with a Python function beside it.
GROUP = {"group": "two-of-mmlu", "task": ["mmlu_anatomy", "mmlu_astronomy"]}
OWN = """
task: shells
dataset_path: allenai/winogrande
dataset_name: winogrande_xl
output_type: generate_until
validation_split: validation
fewshot_split: train
doc_to_text: !function shells.ask
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], do_sample: false}
metric_list: [{metric: exact_match}]
"""
FUNCTION = "def ask(row):\n    return 'Question: ' + row['sentence'] + ' Answer:'\n"


@pytest.fixture(scope="module")
def python():
    found = os.environ.get("QUANTBENCH_ENGINE_PYTHON")
    if not found:
        pytest.skip("QUANTBENCH_ENGINE_PYTHON is not set: no engine environment to test with")
    return found


@pytest.fixture(scope="module")
def config():
    accuracy = [
        {"task": "gsm8k", "dataset": "arithmetic", "questions": 6, "shots": 2, "max_tokens": 48},
        {"task": "gsm8k", "dataset": "arithmetic", "questions": 4, "shots": 0, "max_tokens": 2},
        {"task": "hellaswag"},
        {"task": "winogrande", "questions": 2, "shots": 1},
        {"task": "arc_easy"},
        {"task": "arc_challenge"},
        {"task": "two-of-mmlu.yaml", "shots": 5},
        {"task": "shells.yaml", "questions": 2, "shots": 1, "max_tokens": 8},
    ]
    datasets = [{"name": "arithmetic", "source": "tiny"}]
    if (GSM8K / "test.jsonl").is_file():
        datasets.append({"name": "gsm8k", "source": str(GSM8K)})
        accuracy += [
            {"task": "gsm8k", "dataset": "gsm8k", "questions": 3, "shots": shots, "max_tokens": 16} for shots in (5, 8)
        ]
    return {
        "study": "scored",
        "title": "?",
        "store": "store",
        "models": [{"name": "tiny", "source": "tiny"}],
        "schemes": ["bf16"],
        "gpus": ["cpu"],
        "datasets": datasets,
        "engine": {"kv_cache_memory_bytes": 67108864, "enforce_eager": True, "max_num_seqs": 16},
        "accuracy": accuracy,
        "perplexity": [{"task": "wikitext"}, {"dataset": "arithmetic", "documents": 3}],
        "fidelity": [
            {"dataset": "arithmetic", "documents": 3, "top_k": 4096},
            {"dataset": "arithmetic", "documents": 3, "top_k": 8, "max_tokens": 16},
            {"task": "wikitext", "documents": 2, "top_k": 8},
        ],
        "noise_floor": True,
    }


@pytest.fixture(scope="module")
def staged(tmp_path_factory, python):
    """A folder with the tasks' data in its store, fetched from a hub that is gone by then; `commits` of the hub."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "two-of-mmlu.yaml").write_text(yaml.safe_dump(GROUP))
    (folder / "shells.yaml").write_text(OWN)
    (folder / "shells.py").write_text(FUNCTION)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
    with FakeHub() as hub:
        commits = task_data.serve(hub)
        own |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "cache"), "NO_PROXY": "127.0.0.1"}
        command = [python, ROOT / "tests" / "stage_tasks.py", *TASKS, "two-of-mmlu.yaml", "shells.yaml"]
        process = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=500)
        assert process.returncode == 0, process.stderr
    return folder, commits


@pytest.fixture(scope="module")
def measured(staged, python, config):
    """(manifest, store, tables) after two starts of the engine on the tiny model."""
    folder, _ = staged
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = load_study(config)
        link_sources(study)
        manifest = build_manifest(study)
        jobs = build_jobs(manifest, study.store)["measure_engine"]
        assert list(jobs) == [("cpu", "tiny", "bf16"), ("cpu", "tiny", "bf16+2")]
        for number, job in enumerate(jobs.values()):
            command = [python, ROOT / "workflow/scripts/measure_engine.py", f"--job={text(job)}", "--store=store"]
            command += [f"--output=pointer-{number}.json"]
            offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
            process = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=900)
            assert process.returncode == 0, process.stderr[-5000:]
        wanted = {"load", "accuracy", "perplexity", "reference", "fidelity"}
        manifest["points"] = [point for point in manifest["points"] if point["stage"] in wanted]
        yield manifest, study.store, build_tables(manifest, study.store)


def link_sources(study):
    """Put the local model and data sets into the store, where jobs look for them."""
    for kind, entries in (("models", study.models), ("datasets", study.datasets)):
        for entry in entries.values():
            path = sources.parse(entry["source"], {"models": "model", "datasets": "data"}[kind]).path
            with study.store.new_folder(kind, entry["identity"], {}) as folder:
                for file in path.iterdir():
                    (folder / file.name).symlink_to(file)


def rows(tables, table, **values):
    return tables[table].filter(**values).to_dicts()


# --- staging ----------------------------------------------------------------------------------------------------------


def test_a_tasks_definition_says_what_is_fetched_and_its_commit_is_pinned(staged):
    folder, commits = staged
    pins = json.loads((folder / "config" / "pins.json").read_text())
    assert pins["task arc_easy of lm-eval 0.4.13"] == {"allenai/ai2_arc": commits["allenai/ai2_arc"]}
    assert pins["task two-of-mmlu of lm-eval 0.4.13"] == {"cais/mmlu": commits["cais/mmlu"]}
    entries = {}
    for path in (folder / "store" / "tasks").glob("*/quantbench.json"):
        record = json.loads(path.read_text())
        entries[record["source"]] = record, {str(f.relative_to(path.parent)) for f in path.parent.rglob("*.jsonl")}
    assert entries.keys() == {*TASKS, "two-of-mmlu.yaml", "shells.yaml"}
    # Evaluated and worked examples: ARC's validation split is neither.
    assert entries["arc_easy"][1] == {"0/test.jsonl", "0/train.jsonl"}
    assert entries["two-of-mmlu.yaml"][1] == {f"{n}/{split}.jsonl" for n in (0, 1) for split in ("dev", "test")}
    assert entries["arc_easy"][0]["tasks"] == {"arc_easy": {"output_type": "multiple_choice", "rows": 3, "shots": 0}}
    assert set(entries["shells.yaml"][0]["identity"]["task"]) == {"shells.yaml", "shells.py"}


# --- scores -----------------------------------------------------------------------------------------------------------


def test_everything_is_measured_twice_by_two_engines(measured):
    manifest, _, tables = measured
    assert set(tables["accuracy"]["status"]) == {"ok"} and set(tables["fidelity"]["status"]) == {"ok"}
    starts = {start: set(group["run_id"]) for (start,), group in tables["accuracy"].group_by("start")}
    assert starts.keys() == {1, 2} and all(len(runs) == 1 for runs in starts.values()) and starts[1] != starts[2]
    counted = collections.Counter((p["stage"], p.get("start", 1)) for p in manifest["points"])
    assert counted["accuracy", 1] == counted["accuracy", 2] and counted["reference", 1] == counted["fidelity", 2] == 3


def test_a_multiple_choice_is_read_by_its_metrics(measured):
    found = rows(measured[2], "accuracy", task="hellaswag", start=1)
    assert {(row["question"], row["filter"]) for row in found} == {
        (n, f) for n in range(4) for f in ("acc", "acc_norm")
    }
    for row in found:
        likelihoods = json.loads(row["sample"])
        assert len(likelihoods) == 4 and row["dataset"] == "Rowan/hellaswag" and row["shots"] == 0
        if row["filter"] == "acc":
            # by hand: the likeliest ending is the answer, and right where it is the row's label
            best = likelihoods.index(max(likelihoods))
            assert (row["answer"], row["target"]) == (str(best), str(row["question"] % 4))
            assert row["correct"] == (best == row["question"] % 4)
    assert {row["subtask"] for row in found} == {None} and {row["output_tokens"] for row in found} == {None}
    counts = {task: len(rows(measured[2], "accuracy", task=task, start=1, filter="acc")) for task in TASKS[:4]}
    assert counts == {"hellaswag": 4, "winogrande": 2, "arc_easy": 3, "arc_challenge": 3}


def test_questions_count_on_through_a_group(measured):
    found = rows(measured[2], "accuracy", task="two-of-mmlu", start=1)
    assert [(row["subtask"], row["question"]) for row in found] == [
        ("mmlu_anatomy", 0), ("mmlu_anatomy", 1), ("mmlu_astronomy", 2), ("mmlu_astronomy", 3),
    ]  # fmt: skip
    assert {row["shots"] for row in found} == {5}


def test_a_task_of_the_users_own_runs_its_function_and_keeps_the_text(measured):
    found = rows(measured[2], "accuracy", task="shells", start=1)
    assert [row["target"] for row in found] == ["1", "2"] and {row["filter"] for row in found} == {"exact_match"}
    assert all(0 < row["output_tokens"] <= 8 and isinstance(row["sample"], str) for row in found)


def test_lengths_and_cut_answers_are_recorded(measured):
    found = rows(measured[2], "accuracy", task="gsm8k", dataset="arithmetic", start=1)
    assert {row["filter"] for row in found} == {"strict-match", "flexible-extract"}
    long = [row for row in found if row["shots"] == 2 and row["filter"] == "strict-match"]
    # "12+34: 2+4=6, 1+3+0=4.\n#### 46": the model was trained to this form, and stops by itself
    assert [row["question"] for row in long] == list(range(6)) and sum(row["correct"] for row in long) >= 3
    assert all(f"#### {row['answer']}" in row["sample"] for row in long if row["correct"])
    assert not any(row["cut_off"] for row in long if row["correct"])
    short = [row for row in found if row["shots"] == 0]
    assert {(row["cut_off"], row["output_tokens"]) for row in short} == {(True, 2)}
    assert not any(row["prompt_cut"] for row in found) and all(row["input_tokens"] > 10 for row in found)


def test_perplexity_is_of_text_or_of_a_task(measured):
    found = rows(measured[2], "perplexity", start=1)
    words = {(row["dataset"], row["document"]): (row["words"], row["bytes"]) for row in found}
    assert {name for name, _ in words} == {"wikitext", "arithmetic"}
    # lm-eval counts the words of the page before it is detokenized
    page = task_data.wikitext()[0]["page"]
    assert words["wikitext", 0] == (len(re.split(r"\s+", page)), len(page.encode()))
    assert all(row["tokens"] > 0 and row["negative_log_likelihood"] > 0 for row in found)


# --- fidelity ---------------------------------------------------------------------------------------------------------


def test_the_baseline_agrees_with_itself(measured):
    found = rows(measured[2], "fidelity", start=2)
    assert len(found) == 3 + 3 + 2
    for row in found:
        # two starts of one engine on one CPU: nothing but rounding
        assert row["kl_divergence"] / row["tokens"] == pytest.approx(0, abs=1e-5)
        assert row["top1_agreement"] == row["tokens"]
        assert (row["unresolved_mass"] == 0) == (row["top_k"] == 4096)
        assert row["unresolved_mass"] < row["tokens"]
    mine = {(row["dataset"], row["top_k"], row["document"]): row for row in rows(measured[2], "fidelity", start=1)}
    for row in found:
        other = mine[row["dataset"], row["top_k"], row["document"]]
        assert other["kl_divergence"] is None and other["tokens"] == row["tokens"]
        assert other["negative_log_likelihood"] == pytest.approx(row["negative_log_likelihood"], rel=1e-4)


def test_documents_are_cut_and_their_likelihood_is_that_of_perplexity(measured):
    compared = [row for row in rows(measured[2], "fidelity", start=1) if row["dataset"].startswith("arithmetic")]
    found = {(row["top_k"], row["document"]): row for row in compared}
    assert {row["tokens"] for (top_k, _), row in found.items() if top_k == 8} == {15}
    perplexity = {row["document"]: row for row in rows(measured[2], "perplexity", start=1, dataset="arithmetic")}
    for document, other in perplexity.items():
        whole = found[4096, document]
        # lm-eval predicts the first token from the end of text before it, too
        assert other["tokens"] == whole["tokens"] + 1
        assert whole["negative_log_likelihood"] < other["negative_log_likelihood"]


def test_a_reference_that_is_lost_is_measured_again(measured, tmp_path):
    from quantbench.points import is_measured

    manifest, store, _ = measured
    point = next(point for point in manifest["points"] if point["stage"] == "reference")
    assert is_measured(point, store)
    folder = store.folder("references", point["key"])
    folder.rename(tmp_path / "away")
    assert not is_measured(point, store)
    (tmp_path / "away").rename(folder)


# --- the real GSM8K ---------------------------------------------------------------------------------------------------


@needs_gsm8k
def test_the_real_gsm8k_passes_through_the_whole_path(measured):
    from quantbench.comparison import summarize

    for shots in (5, 8):
        found = rows(measured[2], "accuracy", dataset="gsm8k", shots=shots, start=1)
        assert len(found) == 3 * 2
        assert [row["target"] for row in found[::2]] == [answer(row["answer"]) for row in gsm8k_rows("test")[:3]]
        # In a context of 2048 tokens there is room for five worked examples, not for eight: that is said.
        assert {row["prompt_cut"] for row in found} == {shots == 8}
        assert all(row["input_tokens"] <= 2048 - 16 for row in found)
    entry = summarize(measured[2], "bf16")[0]
    scored = [found for found in entry["accuracy"] if found["dataset"] == "gsm8k"]
    assert len(scored) == 4 and all(found["n"] == 3 and 0 <= found["low"] <= found["high"] <= 1 for found in scored)


@needs_gsm8k
def test_extraction_agrees_with_lm_evals_on_every_reference_answer(python, tmp_path):
    path = tmp_path / "rows.json"
    command = [python, ROOT / "tests" / "score_references.py", GSM8K, path]
    process = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stderr[-3000:]
    found = json.loads(path.read_text())
    by_filter = {name: [row for row in found if row["filter"] == name] for name in ("strict-match", "flexible-extract")}
    references = gsm8k_rows("test")
    assert len(references) == 1319 and all(len(group) == 1319 for group in by_filter.values())
    for row, reference in zip(by_filter["strict-match"], references, strict=True):
        # the rule of GSM8K's authors, written anew: what stands after ####, commas left out
        assert row["correct"] and row["answer"] == row["target"] == answer(reference["answer"])
        assert row["sample"] == reference["answer"]
    for row, reference in zip(by_filter["flexible-extract"], references, strict=True):
        last = re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", reference["answer"])[-1]
        assert row["answer"] == last and row["correct"]


def gsm8k_rows(split):
    return [json.loads(line) for line in (GSM8K / f"{split}.jsonl").read_text().splitlines() if line.strip()]


def answer(reference):
    return reference.split("#### ")[1].strip()

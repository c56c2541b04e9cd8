"""Tasks and fidelity without an engine: files of a task, what waits for the baseline, rows of samples, the divergence."""

import copy
import json

import numpy as np
import pytest
from quantbench.engine.fidelity import ROUNDING, divergences
from quantbench.engine.scoring import accuracy_rows, ending
from quantbench.errors import UserError
from quantbench.manifest import build_manifest
from quantbench.sources import dataset_identity, parse
from quantbench.staging import stage
from quantbench.store import Store
from quantbench.study import load_study
from quantbench.tasks import Unscorable, check_definition, definition, task_files
from quantbench.workflow import Workflow
from workflow_study import CONFIG

# --- files of a task --------------------------------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path):
    (tmp_path / "mine.yaml").write_text("include: base.yaml\ntask: mine\nprocess_docs: !function helpers.clean\n")
    (tmp_path / "base.yaml").write_text("doc_to_text: !function helpers.ask\nfilter: !function lm_eval.utils.thing\n")
    (tmp_path / "helpers.py").write_text("def ask(row): ...\n")
    (tmp_path / "other.py").write_text("")
    return str(tmp_path / "mine.yaml")


def test_a_task_is_its_file_what_it_includes_and_the_python_beside_it(task, tmp_path):
    assert [path.name for path in task_files(task)] == ["base.yaml", "helpers.py", "mine.yaml"]
    before = definition(task)
    check_definition(task, before)
    (tmp_path / "helpers.py").write_text("def ask(row): return 'another'\n")
    assert definition(task) != before
    with pytest.raises(UserError, match=r"mine.yaml' changed since"):
        check_definition(task, before)
    (tmp_path / "base.yaml").unlink()
    with pytest.raises(UserError, match=r"there is no file .*base.yaml"):
        task_files(task)


# --- what waits for the baseline --------------------------------------------------------------------------------------


def planned(tmp_path, monkeypatch, **changes):
    monkeypatch.chdir(tmp_path)
    return Workflow({**copy.deepcopy(CONFIG), "store": str(tmp_path / "store"), **changes})


def of_engine(needs):
    return [path for path in needs if "/engine/" in path]


def test_a_job_waits_for_the_baseline_while_its_distributions_are_missing(tmp_path, monkeypatch):
    workflow = planned(tmp_path, monkeypatch, noise_floor=True)
    variant = {"gpu": "cpu", "model": "tiny"}
    baseline = "results/small/engine/cpu/tiny/bf16.json"
    assert of_engine(workflow.needs("measure_engine", **variant, scheme="rtn-int4")) == [baseline]
    assert of_engine(workflow.needs("measure_engine", **variant, scheme="bf16+2")) == [baseline]
    assert of_engine(workflow.needs("measure_engine", **variant, scheme="bf16")) == []
    # A second server waits for its own engine, and for nobody else's.
    assert of_engine(workflow.needs("measure_serving", **variant, scheme="bf16+2")) == [
        baseline.replace("16.", "16+2.")
    ]
    reference = next(point for point in workflow.manifest["points"] if point["stage"] == "reference")
    store = Store(tmp_path / "store")
    # A point whose files are gone is not there; one that failed has none.
    store.write_point(reference["identity"], status="ok", rows=[], run_id="r")
    assert of_engine(planned(tmp_path, monkeypatch).needs("measure_engine", **variant, scheme="rtn-int4")) == [baseline]
    store.point_path(reference["key"]).unlink()
    store.write_point(reference["identity"], status="out_of_memory", reason="why", rows=[], run_id="r")
    assert of_engine(planned(tmp_path, monkeypatch).needs("measure_engine", **variant, scheme="rtn-int4")) == []


def test_without_a_baseline_on_a_device_nothing_is_compared_there(tmp_path):
    config = copy.deepcopy(CONFIG) | {"store": str(tmp_path / "store"), "gpus": ["b200", "cpu"], "baseline": "int8-rtn"}
    manifest = build_manifest(load_study(config | {"schemes": ["int8-rtn", "rtn-int4"]}))
    # Blackwell has no INT8 kernel in vLLM.
    assert {p["gpu"] for p in manifest["points"] if p["stage"] in ("fidelity", "reference")} == {"cpu"}
    reasons = [
        skip["reason"] for skip in manifest["skips"] if (skip["stage"], skip["scheme"]) == ("fidelity", "rtn-int4")
    ]
    assert len(reasons) == 1 and reasons[0].startswith("the baseline cannot run here: ")


# --- rows -------------------------------------------------------------------------------------------------------------


def generated(question, filter_name, answer, score):
    return {
        "doc_id": question, "filter": filter_name, "filtered_resps": [answer], "resps": [["... #### 42"]],
        "target": "6*7=42\n#### 42", "metrics": ["exact_match"], "exact_match": score,
    }  # fmt: skip


def chosen(question, likelihoods, target, **metrics):
    answers = [(value, False) for value in likelihoods]
    return {
        "doc_id": question, "filter": "none", "filtered_resps": answers, "resps": [[a] for a in answers],
        "target": target, "metrics": list(metrics), **metrics,
    }  # fmt: skip


def test_rows_of_generated_answers():
    samples = [generated(0, "flexible-extract", "42", 1.0), generated(0, "strict-match", "[invalid]", 0.0)]
    end = {"input_tokens": 9, "prompt_cut": False, "output_tokens": 7, "cut_off": True}
    rows = accuracy_rows({"gsm8k": samples}, {("gsm8k", 0): end}, {"gsm8k": 3})
    common = {"subtask": None, "shots": 3, "question": 0, "target": "42", "sample": "... #### 42", **end}
    assert rows == [
        {**common, "filter": "flexible-extract", "correct": True, "answer": "42"},
        {**common, "filter": "strict-match", "correct": False, "answer": "[invalid]"},
    ]


def test_rows_of_choices_are_one_per_metric_and_count_on_through_a_group():
    first = chosen(1, [-4.0, -3.0], 0, acc=0.0, acc_norm=1.0, perplexity=3.7)
    # A target that is a word, not a place: what was chosen cannot be told.
    second = chosen(0, [-1.0, -2.0], "yes", acc=1.0)
    rows = accuracy_rows({"a": [first], "b": [second]}, {}, {"a": 0, "b": 5})
    found = [tuple(row[n] for n in ("subtask", "question", "filter", "correct", "answer", "target")) for row in rows]
    # the first task has questions 0 and 1
    assert found == [
        ("a", 1, "acc", False, "1", "0"),
        ("a", 1, "acc_norm", True, None, "0"),
        ("b", 2, "acc", True, None, "yes"),
    ]
    assert [row["sample"] for row in rows] == ["[-4.0, -3.0]", "[-4.0, -3.0]", "[-1.0, -2.0]"]
    # A target that counts from 1: the second choice is right, and is not called 1.
    assert accuracy_rows({"c": [chosen(0, [-4.0, -3.0], "2", acc=1.0)]}, {}, {"c": 0})[0]["answer"] is None


def test_a_task_without_right_answers_is_refused():
    with pytest.raises(Unscorable, match=r"no answer of task 'translate' .* bleu"):
        accuracy_rows({"translate": [chosen(0, [-1.0], "x", bleu=(1, 2))]}, {}, {"translate": 0})


def test_the_end_of_an_answer_is_found_where_its_prompt_was_cut():
    ended = {(3, 4, 5): {"output_tokens": 2, "cut_off": False}, (9,): {"output_tokens": 1, "cut_off": True}}
    assert ending([9], ended) == {"input_tokens": 1, "prompt_cut": False, "output_tokens": 1, "cut_off": True}
    assert ending([1, 2, 3, 4, 5], ended) == {
        "input_tokens": 3,
        "prompt_cut": True,
        "output_tokens": 2,
        "cut_off": False,
    }
    with pytest.raises(KeyError):
        ending([7, 8], ended)


# --- divergence -------------------------------------------------------------------------------------------------------


def listed(probabilities, k):
    """The k likeliest of each position, as the engine names them."""
    probabilities = np.atleast_2d(probabilities)
    ids = np.argsort(-probabilities, axis=1, kind="stable")[:, :k].astype(np.int32)
    return {"ids": ids, "logs": np.log(np.take_along_axis(probabilities, ids, axis=1)).astype(np.float32)}


def test_divergence_of_the_whole_vocabulary_worked():
    p, q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    # 0.5 ln(0.5 / 0.25) + 0.25 ln(0.25 / 0.5) + 0.25 ln 1 = 0.25 ln 2
    divergence, unresolved = divergences(listed(p, 3), listed(q, 3), 3)
    assert divergence == pytest.approx([0.25 * np.log(2)]) and unresolved == [0]


def test_tokens_that_only_one_names_are_one_class():
    p, q = [0.6, 0.2, 0.15, 0.05], [0.5, 0.05, 0.15, 0.3]
    # Named by both among their two likeliest: token 0. All else: 0.4 against 0.5.
    divergence, unresolved = divergences(listed(p, 2), listed(q, 2), 4)
    assert divergence == pytest.approx([0.6 * np.log(0.6 / 0.5) + 0.4 * np.log(0.4 / 0.5)])
    assert unresolved == pytest.approx([0.4])


def test_the_divergence_of_a_few_tokens_is_a_bound_from_below_that_tightens():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(200, 0.1), size=50)
    q = 0.7 * p + 0.3 * rng.dirichlet(np.full(200, 0.1), size=50)
    q, p = np.maximum(q, 1e-12), np.maximum(p, 1e-12)
    p, q = (part / part.sum(axis=1, keepdims=True) for part in (p, q))
    exact = np.sum(p * np.log(p / q), axis=1)
    whole, unresolved = divergences(listed(p, 200), listed(q, 200), 200)
    assert whole == pytest.approx(exact, abs=1e-5) and not unresolved.any()
    means = []
    for k in (1, 4, 16, 64, 150):
        bound, unresolved = divergences(listed(p, k), listed(q, k), 200)
        assert (bound <= exact + 5 * ROUNDING).all() and (bound >= -5 * ROUNDING).all()
        means.append(bound.mean())
    assert means == sorted(means) and means[-1] == pytest.approx(exact.mean(), rel=0.05)


def test_a_distribution_does_not_diverge_from_itself():
    p = np.random.default_rng(1).dirichlet(np.ones(50), size=20)
    for k in (1, 10, 50):
        divergence, _ = divergences(listed(p, k), listed(p, k), 50)
        assert divergence == pytest.approx(np.zeros(20), abs=ROUNDING)


# --- rows of one's own ------------------------------------------------------------------------------------------------


def test_rows_for_a_task_have_its_columns(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"ctx_a": "A child", "endings": ["runs."], "label": "0"}\n')
    job = {"kind": "dataset", "name": "mine", "source": str(path), "path": str(path), "hub": None}
    job["identity"] = dataset_identity(parse(str(path), "data"), None, {})
    with pytest.raises(UserError, match="a row has the texts question and answer"):
        stage({**job, "texts": True}, Store(tmp_path / "store"))
    _, folder = stage({**job, "texts": False}, Store(tmp_path / "store"))
    assert json.loads((folder / "quantbench.json").read_text())["splits"] == {"test": 1}


def test_whether_rows_are_read_as_text_is_known_before(tmp_path):
    config = copy.deepcopy(CONFIG) | {"store": str(tmp_path / "store")}
    config["datasets"].append({"name": "endings", "source": "tiny"})
    config["accuracy"].append({"task": "hellaswag", "dataset": "endings", "shots": 0})
    study = load_study(config)
    assert study.reads_texts("arithmetic") and not study.reads_texts("endings")
    config["perplexity"].append({"dataset": "endings", "documents": 1})
    assert load_study(config).reads_texts("endings")

"""Accuracy and perplexity through lm-eval, on the engine that is already running."""

import json
from pathlib import Path

from quantbench.errors import UserError

# Documents of a question-and-answer data set, and of one with plain text.
DOCUMENT = "{% if text is defined %}{{text}}{% else %}Question: {{question}}\nAnswer: {{answer}}{% endif %}"


class Scorer:
    """lm-eval bound to a Session. The imports take seconds, so one Scorer serves all tasks of a variant."""

    def __init__(self, session, trust_remote_code=False):
        from lm_eval.models import vllm_causallms

        # lm-eval constructs its engine by this name; it gets ours instead of a second one.
        vllm_causallms.LLM = lambda **_: session.llm
        self.model = vllm_causallms.VLLM(pretrained=str(session.checkpoint), trust_remote_code=trust_remote_code)

    def accuracy(self, params, folder):
        """Rows of one question-and-answer task: {"question", "filter", "correct", "answer", "target"} per question and filter.

        params  task, split, questions, fewshot_split, shots, max_tokens of the point
        folder  staged data set with one JSONL file per split
        """
        task = _gsm8k(params, folder)
        samples = self._evaluate(task, params["shots"])
        # lm-eval gives one sample per question and filter.
        return [
            {
                "question": sample["doc_id"],
                "filter": sample["filter"],
                "correct": bool(sample["exact_match"]),
                "answer": str(sample["filtered_resps"][0]),
                "target": _number(sample["target"]),
            }
            for sample in samples
        ]

    def perplexity(self, params, folder):
        """Rows of a set of documents: {"document", "tokens", "negative_log_likelihood"}, in nats, summed over the tokens."""
        name = f"perplexity-{params['split']}"
        rows = read_rows(folder, params["split"], params["documents"])
        task = {
            "task": name,
            "custom_dataset": lambda **_: {"test": _dataset(rows)},
            "output_type": "loglikelihood_rolling",
            "test_split": "test",
            "doc_to_text": "",
            "doc_to_target": DOCUMENT,
            "metric_list": [{"metric": "word_perplexity"}],
        }
        samples = self._evaluate(task, 0)
        return [
            {
                "document": sample["doc_id"],
                "tokens": len(self.model.tok_encode(sample["target"])),
                "negative_log_likelihood": -float(sample["filtered_resps"][0]),
            }
            for sample in samples
        ]

    def _evaluate(self, task, shots):
        from lm_eval import simple_evaluate

        results = simple_evaluate(
            model=self.model, tasks=[task], num_fewshot=shots, bootstrap_iters=0, log_samples=True
        )
        return sorted(results["samples"][task["task"]], key=lambda sample: (sample["doc_id"], sample.get("filter", "")))


def read_rows(folder, split, count):
    """The first `count` rows of a staged split. Raises UserError when there are fewer."""
    with open(Path(folder) / f"{split}.jsonl") as file:
        rows = [json.loads(line) for line in file if line.strip()][:count]
    if len(rows) < count:
        raise UserError(f"{folder}: {count} rows of split {split!r} asked, {len(rows)} there")
    return rows


def _gsm8k(params, folder):
    """lm-eval's own gsm8k task, prompts, stops and extraction included, on staged questions instead of the hub's."""
    import lm_eval.tasks
    import yaml

    path = Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k.yaml"
    task = yaml.safe_load(path.read_text())
    for key in ("dataset_path", "dataset_name", "tag", "training_split"):
        task.pop(key, None)
    data = {"test": _dataset(read_rows(folder, params["split"], params["questions"]))}
    if params["shots"]:
        with open(Path(folder) / f"{params['fewshot_split']}.jsonl") as file:
            data["fewshot"] = _dataset([json.loads(line) for line in file if line.strip()])
    task |= {
        "custom_dataset": lambda **_: data,
        "test_split": "test",
        "fewshot_split": "fewshot" if params["shots"] else "test",
    }
    task["generation_kwargs"] = {**task["generation_kwargs"], "max_gen_toks": params["max_tokens"]}
    return task


def _dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


def _number(target):
    return str(target).rsplit("#### ", 1)[-1].strip()

"""python score_references.py GSM8K OUTPUT: rows of the real GSM8K's test split as if a model had given its own answers.

lm-eval builds the prompts, reads the answers and scores them; accuracy_rows turns its samples into rows.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from quantbench.engine.scoring import accuracy_rows
from quantbench.engine.tasks import FEWSHOT_SEED, Library, own_data


class Knowing(LM):
    """Answers each question as its row does."""

    def generate_until(self, requests, **_):
        for request in requests:
            # five worked examples, then the question
            assert request.args[0].count("Question: ") >= 6 and request.doc["question"] in request.args[0]
        return [request.doc["answer"] for request in requests]

    def loglikelihood(self, requests, **_):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


library = Library()
tasks = library.build("gsm8k", own_data(sys.argv[1], "test", "train"))
tasks["gsm8k"].set_fewshot_seed(FEWSHOT_SEED)
found = simple_evaluate(
    model=Knowing(), tasks=list(tasks.values()), bootstrap_iters=0, log_samples=True, task_manager=library.manager
)
samples = {name: sorted(group, key=lambda s: (s["filter"], s["doc_id"])) for name, group in found["samples"].items()}
Path(sys.argv[2]).write_text(json.dumps(accuracy_rows(samples, {}, {"gsm8k": 5})))

"""Accuracy and perplexity through lm-eval, on the engine that is already running."""

import json

from quantbench.engine.tasks import FEWSHOT_SEED, Library, own_data, served, staged_data
from quantbench.errors import UserError
from quantbench.tasks import TEXT, Unscorable, check_definition

# Documents of a question-and-answer data set, and of one with plain text.
DOCUMENT = "{% if text is defined %}{{text}}{% else %}Question: {{question}}\nAnswer: {{answer}}{% endif %}"


class Scorer:
    """lm-eval bound to a Session. The imports take seconds, so one Scorer serves all tasks of a variant."""

    def __init__(self, session, trust_remote_code=False, library=None, files=None):
        """library, files  as build_tasks takes them"""
        self.model = _recording_model(session, trust_remote_code)
        self.library = library or Library()
        self.files = files or {}

    def accuracy(self, params, store):
        """Rows of a task, one per question and filter: see table `accuracy`.

        params  of the point: `task`, `questions` of each task below it (None: all), `shots` (None: the task's own number),
                `max_tokens` of an answer (None: the task's own), `chat_template`; its data as in `provider`
        """
        tasks = self._build(params, store)
        for name, task in tasks.items():
            if task.OUTPUT_TYPE == TEXT:
                raise UserError(f"task {name!r} is text without right answers; ask for it under perplexity")
            if params["shots"] is not None:
                task.set_config("num_fewshot", params["shots"])
            if params["max_tokens"] is not None and task.OUTPUT_TYPE == "generate_until":
                task.set_config("generation_kwargs", {"max_gen_toks": params["max_tokens"]}, update=True)
        shots = {name: task.get_config("num_fewshot") or 0 for name, task in tasks.items()}
        samples = self._evaluate(tasks, params["questions"], params["chat_template"])
        return accuracy_rows(samples, self.model.ended, shots)

    def perplexity(self, params, store):
        """Rows of a set of documents: {"document", "tokens", "negative_log_likelihood" in nats, "words", "bytes"}."""
        tasks = self._build(params, store)
        samples = self._evaluate(tasks, params["documents"])
        rows = []
        for sample in (sample for group in samples.values() for sample in group):
            row = {"document": len(rows), "tokens": len(self.model.tok_encode(sample["target"]))}
            row["negative_log_likelihood"] = -float(sample["filtered_resps"][0])
            for name, metric in (("words", "word_perplexity"), ("bytes", "byte_perplexity")):
                row[name] = int(sample[metric][1]) if metric in sample else None
            rows.append(row)
        return rows

    def texts(self, params, store):
        """The documents of a point of perplexity or fidelity, as text."""
        documents = []
        for task in self._build(params, store).values():
            for number, row in enumerate(task.eval_docs):
                if params["documents"] is not None and number >= params["documents"]:
                    break
                documents.append(task.doc_to_target(row))
        return documents

    def _build(self, params, store):
        return build_tasks(params, store, self.library, self.files)

    def _evaluate(self, tasks, limit, chat_template=False):
        """{task: samples by question and filter}"""
        from lm_eval import simple_evaluate

        for task in tasks.values():
            task.set_fewshot_seed(FEWSHOT_SEED)
        results = simple_evaluate(
            model=self.model,
            tasks=list(tasks.values()),
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat_template,
            task_manager=self.library.manager,
            fewshot_random_seed=FEWSHOT_SEED,
        )

        def order(sample):
            return sample["doc_id"], sample.get("filter", "")

        return {name: sorted(results["samples"][name], key=order) for name in tasks}


def build_tasks(params, store, library, files):
    """{name: lm-eval's task} of a point. Raises UserError for a task that is not known or cannot read its rows.

    library  lm-eval's tasks
    files    {name: path} of the tasks that are YAML files of the user's
    """
    provide = provider(params, store)
    if "task" not in params:
        return _text_task(params, provide)
    name = files.get(params["task"], params["task"])
    check_definition(name, params.get("definition"))
    try:
        return library.build(name, provide)
    except Exception as error:
        # A template of the definition that finds no column, as lm-eval words it.
        if type(error).__name__ not in ("UndefinedError", "KeyError"):
            raise
        raise UserError(f"task {params['task']!r} cannot read its rows: {error}") from None


def provider(params, store):
    """Where a point's data lie: those that staging found for its task, or a data set of the study's."""
    if "staged" in params:
        return staged_data(store.folder("tasks", params["staged"]))
    return own_data(store.folder("datasets", params["dataset"]), params["split"], params.get("fewshot_split"))


def accuracy_rows(samples, ended, shots):
    """Rows of table `accuracy` from lm-eval's samples.

    samples  {task: its samples, by question}; questions count on from task to task, which keeps them apart in a group
    ended    {(task, question): Ending} of generated answers
    shots    {task: worked examples that were in the prompt}

    Only metrics by which each answer is right or wrong are rows. Raises Unscorable for a task that has none.
    """
    rows, first = [], 0
    for task, found in samples.items():
        metrics = _right_or_wrong(found)
        if not metrics:
            names = ", ".join(sorted({name for sample in found for name in sample["metrics"]}))
            raise Unscorable(f"no answer of task {task!r} is right or wrong by its metrics: {names}")
        for sample in found:
            for metric in metrics:
                row = {"subtask": task if len(samples) > 1 else None, "shots": shots[task]}
                row |= {"question": first + sample["doc_id"], "filter": _reading(sample["filter"], metric, metrics)}
                row |= {"correct": bool(sample[metric]), **_answer(sample, metric)}
                end = ended.get((task, sample["doc_id"]))
                rows.append(row | (end or {}))
        first += 1 + max(sample["doc_id"] for sample in found)
    return rows


def _right_or_wrong(samples):
    names = dict.fromkeys(name for sample in samples for name in sample["metrics"])
    return [name for name in names if all(_is_verdict(sample.get(name)) for sample in samples)]


def _is_verdict(value):
    return isinstance(value, bool | int | float) and value in (0, 1)


def _reading(filter_name, metric, metrics):
    """What tells the readings of one answer apart: lm-eval's filter; where it filters nothing, the metric."""
    if filter_name == "none":
        return metric
    return filter_name if len(metrics) == 1 else f"{filter_name}, {metric}"


def _answer(sample, metric):
    """{"answer", "target", "sample"}: what was read and what is right; the text, or each choice's log-likelihood."""
    if isinstance(sample["filtered_resps"][0], str):
        text = sample["resps"][0][0]
        return {"answer": sample["filtered_resps"][0], "target": _number(sample["target"]), "sample": text}
    likelihoods = [float(answer[0]) for answer in sample["filtered_resps"]]
    target = sample["target"]
    found = {"answer": None, "target": str(target), "sample": json.dumps(likelihoods)}
    if len(likelihoods) > 1 and metric == "acc":
        best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
        # A task may name its right answer otherwise than by its place.
        if str(target).isdigit() and (best == int(target)) == bool(sample[metric]):
            found["answer"] = str(best)
    return found


def _number(target):
    """GSM8K's answers end in `#### 42`; any other is whole."""
    return str(target).rsplit("#### ", 1)[-1].strip()


def _text_task(params, provide):
    """Documents of a data set of the study's, whole, as lm-eval's task."""
    from lm_eval.api.task import ConfigurableTask

    name = f"text-{params['split']}"
    config = {
        "task": name,
        "output_type": TEXT,
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": DOCUMENT,
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
    }
    with served(provide):
        return {name: ConfigurableTask(config=config)}


def _recording_model(session, trust_remote_code):
    """lm-eval's model on the session's engine. `ended`: {(task, question): how long an answer was and why it ended}."""
    from lm_eval.models import vllm_causallms

    # lm-eval constructs its engine by this name; it gets ours instead of a second one.
    vllm_causallms.LLM = lambda **_: session.llm

    class Model(vllm_causallms.VLLM):
        ended, _ended_by_prompt = {}, {}

        def generate_until(self, requests, disable_tqdm=False):
            self._ended_by_prompt = {}
            texts = super().generate_until(requests, disable_tqdm)
            prompts = self.tok_encode([request.args[0] for request in requests])
            for request, prompt in zip(requests, prompts, strict=True):
                self.ended[request.task_name, request.doc_id] = ending(prompt, self._ended_by_prompt)
            return texts

        def _model_generate(self, requests, generate=False, sampling_params=None):
            outputs = super()._model_generate(requests, generate, sampling_params)
            for output in outputs if generate else ():
                answer = output.outputs[0]
                end = {"output_tokens": len(answer.token_ids), "cut_off": answer.finish_reason == "length"}
                self._ended_by_prompt[tuple(output.prompt_token_ids)] = end
            return outputs

    model = Model(pretrained=str(session.checkpoint), trust_remote_code=trust_remote_code)
    model.ended = {}
    return model


def ending(prompt, ended_by_prompt):
    """How the answer to a prompt ended. lm-eval may have cut the prompt at its start, to fit the model's context.

    Raises KeyError for a prompt that was never sent.
    """
    whole = ended_by_prompt.get(tuple(prompt))
    if whole:
        return {"input_tokens": len(prompt), "prompt_cut": False, **whole}
    for sent, end in ended_by_prompt.items():
        if len(sent) < len(prompt) and tuple(prompt[-len(sent) :]) == sent:
            return {"input_tokens": len(sent), "prompt_cut": True, **end}
    raise KeyError("no answer was generated for this prompt")

"""Calibrations: what a study may say of them, what goes into an identity, and which rows they choose. Pure."""

import copy
import json

import pytest
from quantbench import calibrations
from quantbench.errors import UserError
from quantbench.manifest import build_manifest
from quantbench.quantize.calibration import calibration_texts, chosen_rows, described, rows_of_parts, token_rows
from quantbench.study import load_study
from workflow_study import CONFIG

WHOLE = {"samples": 16, "max_tokens": 64, "seed": 0}
PLAIN = {"dataset": "arithmetic", **WHOLE}
MIX = [{"dataset": "prose", "split": "test", "share": 1}, {"dataset": "arithmetic", "share": 3}]


@pytest.fixture
def study(tmp_path):
    """study(calibration, schemes) -> the manifest; `prose` has 10 rows in its split test."""
    with open(tmp_path / "prose.jsonl", "w") as file:
        file.writelines(json.dumps({"text": f"Text {i}."}) + "\n" for i in range(10))

    def load(calibration, names=("gptq-int4",)):
        config = copy.deepcopy(CONFIG) | {"store": str(tmp_path / "store"), "calibration": calibration}
        config["datasets"] = [*config["datasets"], {"name": "prose", "source": str(tmp_path / "prose.jsonl")}]
        return build_manifest(load_study(config | {"schemes": ["bf16", *names]}))

    return load


def of(manifest, scheme):
    [entry] = [entry for entry in manifest["checkpoints"] if entry["scheme"] == scheme]
    return entry


# --- the study ------------------------------------------------------------------------------------------------------------


def test_one_plain_data_set_has_the_identity_that_it_always_had(study):
    found = of(study(PLAIN), "gptq-int4")["identity"]["calibration"]
    dataset = found.pop("dataset")
    assert len(dataset) == 64 and found == {"split": "train", **WHOLE}
    # A name says nothing about the texts.
    named = study([{"name": "sums", **PLAIN}], ("gptq-int4.sums",))
    assert of(named, "gptq-int4.sums")["key"] == of(study(PLAIN), "gptq-int4")["key"]


def test_a_checked_config_is_a_config_again(study, tmp_path):
    calibration = [{"name": "sums", **PLAIN}, {"name": "mixed", "mix": MIX, **WHOLE}]
    once = study(calibration, ("gptq-int4", "gptq-int4.mixed"))
    again = build_manifest(load_study(json.loads(json.dumps({**once["study"], "title": "-"}))))
    assert again == once


def test_schemes_see_the_first_calibration_or_the_one_they_name(study):
    calibration = [{"name": "sums", **PLAIN}, {"name": "mixed", "mix": MIX, **WHOLE}]
    found = study(calibration, ("gptq-int4", "gptq-int4.mixed", "rtn-int4"))
    sums, mixed = of(found, "gptq-int4"), of(found, "gptq-int4.mixed")
    assert sums["key"] != mixed["key"] and (sums["calibration"], mixed["calibration"]) == ("sums", "mixed")
    assert sums["identity"]["recipe"] == mixed["identity"]["recipe"]
    assert [part["share"] for part in mixed["identity"]["calibration"]["mix"]] == [1, 3]
    assert of(found, "rtn-int4")["identity"]["calibration"] is None
    # Each is compared with the model on the texts of both, so that neither is judged on its own alone.
    layers = [(point["scheme"], point["texts"]) for point in found["layers"]]
    assert layers == [(s, t) for s in ("gptq-int4", "gptq-int4.mixed", "rtn-int4") for t in ("sums", "mixed")]


@pytest.mark.parametrize(
    ("calibration", "names", "words"),
    [
        ({**PLAIN, "mix": MIX}, [], ["calibration: give dataset", "or mix"]),
        (WHOLE, [], ["calibration: give dataset"]),
        ({"mix": MIX, "split": "test", **WHOLE}, [], ["calibration.split", "mix[0]"]),
        ({"mix": [MIX[0], {"dataset": "prosa"}], **WHOLE}, [], ["calibration.mix[1].dataset", "'prosa'", "'prose'"]),
        ([PLAIN, {"name": "b", **PLAIN}], [], ["calibration[0].name: is missing"]),
        ([{"name": "a", **PLAIN}, {"name": "a", "mix": MIX, **WHOLE}], [], ["'a' stands twice"]),
        # a quarter of 100 rows is 25, and there are 10
        ({"mix": MIX, **WHOLE, "samples": 100}, [], ["calibration.mix[0] of 100 samples", "25 asked", "10 rows"]),
        (
            {"mix": [{**MIX[0], "share": 0.05}, MIX[1]], **WHOLE},
            [],
            ["calibration.mix[0].share: 0.05 of 3.05", "16 samples"],
        ),
        ({**PLAIN, "chat_template": True}, [], ["chat_template", "'tiny' has none"]),
        ([{"name": "a", **PLAIN}], ["rtn-int4.a"], ["rtn-int4 sees no calibration", "'rtn-int4'"]),
        ([{"name": "a", **PLAIN}], ["gptq-int4.a"], ["'gptq-int4' and 'gptq-int4.a' are the same"]),
        ([{"name": "own", **PLAIN}], ["gptq-int4.owm"], ["'gptq-int4.owm'", "'gptq-int4.own'"]),
    ],
)
def test_a_wrong_calibration_is_refused_before_anything_runs(study, calibration, names, words):
    with pytest.raises(UserError) as error:
        study(calibration, ("gptq-int4", *names))
    assert all(word in str(error.value) for word in words), error.value


# --- rows -----------------------------------------------------------------------------------------------------------------


def test_rows_are_shared_out():
    # 8 rows of 1 to 3: 2 and 6; 10 of equal thirds: 3.33 each, the tenth goes to the first
    assert rows_of_parts([1, 3], 8) == [2, 6]
    assert rows_of_parts([1, 1, 1], 10) == [4, 3, 3]
    assert rows_of_parts([0.7, 0.3], 5) == [4, 1] and rows_of_parts([2, 1], 0) == [0, 0]


def test_rows_are_chosen_by_the_seed():
    calibration = {"dataset": "d", "samples": 4, "seed": 3}
    chosen = chosen_rows([10], calibration)
    assert chosen == chosen_rows([10], calibration) and len(set(chosen)) == 4
    assert chosen != chosen_rows([10], {**calibration, "seed": 4})
    # The rows that a checkpoint in some store was made with: Python's Random(0), first 5 of 16 shuffled.
    assert [n for _, n in chosen_rows([16], {"dataset": "d", "samples": 5, "seed": 0})] == [10, 14, 5, 1, 9]


def test_a_mix_is_interleaved():
    mix = {"mix": [{"share": 1}, {"share": 1}], "samples": 40, "seed": 0}
    chosen = chosen_rows([30, 50], mix)
    sources = [part for part, _ in chosen]
    assert sources.count(0) == sources.count(1) == 20
    # Not one after the other: some of either in each half.
    assert 0 < sum(sources[:20]) < 20


def test_held_out_rows_are_others_as_far_as_there_are():
    calibration = {"dataset": "d", "samples": 6, "seed": 0}
    seen, others = set(chosen_rows([10], calibration)), set(chosen_rows([10], calibration, held_out=4))
    assert not seen & others and len(others) == 4
    # Of ten rows six are seen: with six held out, two of them are seen ones.
    assert len(set(chosen_rows([10], calibration, held_out=6)) & seen) == 2


def rows_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_texts_of_both_kinds_of_rows(tmp_path):
    sums = rows_file(tmp_path / "sums.jsonl", [{"question": "2+2?", "answer": "4"}])
    prose = rows_file(tmp_path / "prose.jsonl", [{"text": "Once."}])
    whole = {"samples": 1, "seed": 0, "max_tokens": 8}
    assert calibration_texts([sums], {"dataset": "d", **whole}) == [("Question: 2+2?\nAnswer: 4\n\n", False)]
    [(turns, is_turns)] = calibration_texts([sums], {"dataset": "d", "chat_template": True, **whole})
    assert is_turns and turns == [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    mix = {"mix": [{"share": 1, "chat_template": True}, {"share": 1}], **whole, "samples": 2}
    assert {is_turns for _, is_turns in calibration_texts([sums, prose], mix)} == {True, False}
    with pytest.raises(UserError, match="prose.jsonl, row 1: has no question and answer, which chat_template"):
        calibration_texts([prose], {"dataset": "d", "chat_template": True, **whole})
    with pytest.raises(UserError, match="wants 2 rows of .*prose.jsonl, which has only 1"):
        calibration_texts([prose], {"dataset": "d", **whole, "samples": 2})


class Tokenizer:
    """One token a character; a beginning of its own, which a chat template writes itself."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}

    def apply_chat_template(self, turns, tokenize):
        return "\x01" + "".join(turn["content"] for turn in turns)


def test_a_chat_template_writes_the_special_tokens_itself():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert token_rows([("ab", False), (turns, True)], Tokenizer()) == [[1, 97, 98], [1, 97, 98]]


def test_the_very_tokens_have_a_digest():
    one, other = described([[1, 2], [3]]), described([[1], [2, 3]])
    assert (one["rows"], one["tokens"]) == (other["rows"], other["tokens"]) == (2, 3)
    # printf '[[1,2],[3]]' | sha256sum
    assert one["sha256"].startswith("2ce1506f") and other["sha256"] != one["sha256"]


def test_labels():
    assert calibrations.label({"name": None, "mix": MIX}) == "prose + arithmetic"
    assert calibrations.label({"name": "own", **PLAIN}) == "own" and calibrations.label(PLAIN) == "arithmetic"

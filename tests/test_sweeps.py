"""Lengths as a grid or a list, batch sizes of one length, workloads: which points a section asks for."""

import polars
import pytest
from quantbench import sweeps
from quantbench.phases import with_tpot


def test_a_grid_is_every_combination_of_its_lists():
    assert sweeps.listed({"input_tokens": [32, 512], "output_tokens": [8, 64]}) == [
        {"input_tokens": 32, "output_tokens": 8},
        {"input_tokens": 32, "output_tokens": 64},
        {"input_tokens": 512, "output_tokens": 8},
        {"input_tokens": 512, "output_tokens": 64},
    ]
    assert sweeps.listed([{"input_tokens": 1, "output_tokens": 2}]) == [{"input_tokens": 1, "output_tokens": 2}]


def test_a_length_may_have_batch_sizes_of_its_own():
    """As torchao measures: 32 prompts of 4096 tokens in and 32 out, 128 of 32 in and 2048 out."""
    prefill = {"input_tokens": 4096, "output_tokens": 32}
    decode = {"input_tokens": 32, "output_tokens": 2048}
    sweep = {"batch_sizes": [1], "lengths": [prefill | {"batch_sizes": [32]}, decode | {"batch_sizes": [128]}, prefill]}
    assert sweeps.points(sweep) == [
        {"batch_size": 32} | prefill,
        {"batch_size": 128} | decode,
        {"batch_size": 1} | prefill,
    ]


def test_a_workload_is_asked_for_at_every_batch_size():
    found = sweeps.points({"batch_sizes": [4, 8], "workloads": ["chat"]}, {"chat": {"sha256": "ab"}, "other": {}})
    assert found == [{"batch_size": size, "workload": {"sha256": "ab"}, "seed": 0} for size in (4, 8)]


def test_no_section_has_no_points():
    assert sweeps.points(None) == []


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"lengths": [{"input_tokens": 1, "output_tokens": 2}]}, "latency.lengths[0]: no batch_sizes"),
        (
            {"batch_sizes": [1], "lengths": [{"input_tokens": 1, "output_tokens": 2, "batch_sizes": [3, 3]}]},
            "latency.lengths[0].batch_sizes: 3 stands twice",
        ),
        (
            {"batch_sizes": [1], "lengths": [{"input_tokens": 1, "output_tokens": 2}] * 2},
            "latency.lengths[1]: 1 tokens in and 2 out stand twice",
        ),
        ({"workloads": ["chat"]}, "latency.batch_sizes: is missing"),
    ],
)
def test_faults_name_the_key(sweep, said):
    (fault,) = sweeps.faults("latency", sweep)
    assert fault.startswith(said)


def test_time_per_token_is_what_the_first_token_leaves():
    # six tokens, the first after 20 ms, the last after 100 ms: (100 - 20) / (6 - 1) = 16 ms
    rows = [
        {"elapsed_s": 0.100, "ttft_s": 0.020, "output_tokens": 6},
        {"elapsed_s": 0.100, "ttft_s": 0.020, "output_tokens": 1},
    ]
    rows.append({"elapsed_s": 0.100, "ttft_s": None, "output_tokens": 6})
    assert with_tpot(polars.DataFrame(rows))["tpot_s"].to_list() == [pytest.approx(0.016), None, None]

"""Energy over a window: arithmetic with known answers, counters that begin again, and silence where there is no meter."""

import time

import pytest
from quantbench.device_state import visible_devices
from quantbench.energy import EnergyMeter, Rapl, energy_rows, meter, summed


def test_power_is_integrated_by_trapezoids():
    # 1 s rising from 100 to 200 W, then 2 s at 200 W.
    record = summed([(0.0, 100.0), (1.0, 200.0), (3.0, 200.0)], counts=False)
    assert record == {"joules": 550.0, "seconds": 3.0, "largest_gap_s": 2.0, "valid": True}


def test_a_gap_of_more_than_three_seconds_makes_a_window_invalid_and_an_unanswered_reading_is_a_gap():
    assert summed([(0, 1.0), (2, 1.0), (4, None), (6, 1.0)], counts=False)["valid"] is False
    assert summed([(0, None), (4, 1.0), (5, 1.0)], counts=False)["valid"] is False
    assert summed([(0, None), (1, None)], counts=False) is None


def test_a_meter_reads_while_the_work_is_done():
    with EnergyMeter(lambda: 50.0) as window:
        time.sleep(0.5)
    assert window.record["joules"] == pytest.approx(50 * window.record["seconds"])
    # More than the two ends.
    assert window.record["largest_gap_s"] < window.record["seconds"]


def test_without_a_meter_there_is_no_record():
    with EnergyMeter(None) as window:
        pass
    assert window.record is None


def counters(folder, microjoules):
    for name, value in microjoules.items():
        zone = folder / name
        zone.mkdir(exist_ok=True)
        (zone / "energy_uj").write_text(f"{value}\n")
        (zone / "max_energy_range_uj").write_text("10000000\n")


def test_packages_are_summed_their_parts_are_not_and_a_counter_may_begin_again(tmp_path):
    counters(tmp_path, {"intel-rapl:0": 9_000_000, "intel-rapl:1": 0, "intel-rapl:0:0": 5})
    packages = Rapl(tmp_path)
    assert packages.joules() == 0
    counters(tmp_path, {"intel-rapl:0": 1_000_000, "intel-rapl:1": 3_000_000, "intel-rapl:0:0": 9_000_000})
    # 2 J around the end of the first package's range of 10 J, 3 J of the second.
    assert packages.joules() == pytest.approx(5.0)


def test_a_cpu_whose_counters_may_not_be_read_has_no_meter(tmp_path):
    assert Rapl(tmp_path).found == []
    assert meter({"environment": "engine-cuda"}).__enter__().record is None


def test_the_devices_that_a_variant_is_divided_among_are_all_read():
    assert visible_devices(2, {}) == ["0", "1"]
    assert visible_devices(2, {"CUDA_VISIBLE_DEVICES": "3,GPU-a,5"}) == ["3", "GPU-a"]
    assert visible_devices(2, {"CUDA_VISIBLE_DEVICES": "3,-1,5"}) == ["3"]
    assert visible_devices(1, {"CUDA_VISIBLE_DEVICES": ""}) == []


def row_of(stage, params, rows, valid=True):
    drawn = {"joules": 60.0, "seconds": 2.0, "largest_gap_s": 0.1, "valid": valid}
    point = {"stage": stage, "key": "k", "identity": {"params": params}}
    (row,) = energy_rows(point, {"status": "ok", "energy": drawn, "rows": rows}, {"gpu": "h200"})
    return row


def test_joules_per_token_are_of_the_tokens_of_the_window():
    batches = row_of("latency", {"batch_size": 2, "input_tokens": 8, "output_tokens": 5}, [{}, {}, {}])
    assert (batches["output_tokens"], batches["joules_per_token"], batches["mean_power_w"]) == (30, 2.0, 30.0)
    served = row_of("serving", {"load": "rate", "rate_per_s": 4}, [{"output_tokens": 5}, {"output_tokens": 7}])
    assert (served["output_tokens"], served["joules_per_token"]) == (12, 5.0)
    assert row_of("serving", {}, [{"output_tokens": 1}], valid=False)["joules_per_token"] is None


def test_a_point_that_was_not_metered_or_did_not_work_has_no_row():
    point = {"stage": "latency", "key": "k", "identity": {"params": {}}}
    assert energy_rows(point, {"status": "ok", "rows": []}, {}) == []
    assert energy_rows(point, {"status": "invalid", "rows": [], "energy": {"joules": 1}}, {}) == []

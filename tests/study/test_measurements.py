"""From the folder of a run to figures, and from runs to mean and spread."""

import json

import pytest

from yolojax.study.measurements import measure_run, measure_study, summarise_runs


def test_a_run_of_ours(make_runs, record_run):
    _, (run,) = make_runs()
    record_run(run, [(0.2, 0.1), (0.5, 0.3), (0.6, 0.25)])
    measured = measure_run(run)
    figures = measured.figures
    # The best epoch is that of the best fitness (0.32 against 0.285), not of the best mAP50.
    assert (figures["map50"], figures["map50_95"], figures["best_epoch"]) == (0.5, 0.3, 2)
    assert (figures["final_map50"], figures["wall_seconds"]) == (0.6, 32)
    assert (figures["images_per_second"], figures["step_seconds"]) == (30.0, pytest.approx(4 / 30))
    assert (figures["memory_bytes"], measured.memory_source) == (7_000_000, "compiled program")
    assert figures["process_bytes"] == 10**9 + 2
    assert (figures["utilisation"], measured.utilisation_source) == (
        pytest.approx(80),
        "CPU",
    )  # 150, 160, 170 % of two processors
    assert [(point.epoch, point.seconds) for point in measured.curve] == [(0, 10), (1, 20), (2, 30)]


def test_a_strategy_in_phases_counts_each_for_as_long_as_it_lasted(make_runs, record_run):
    _, (run,) = make_runs()
    program = {"phase": "", "parameters": 100}
    programs = [
        {
            **program,
            "epoch": 0,
            "trainable": 10,
            "compile_seconds": 3.0,
            "flops": 1e9,
            "argument_bytes": 1,
            "temporary_bytes": 2,
        },
        {
            **program,
            "epoch": 1,
            "trainable": 90,
            "compile_seconds": 5.0,
            "flops": 4e9,
            "argument_bytes": 1,
            "temporary_bytes": 8,
        },
    ]
    record_run(run, [(0.1, 0.1)] * 3, programs=programs)
    figures = measure_run(run).figures
    assert figures["step_flops"] == 3e9  # 1, 4, 4
    assert (figures["trainable"], figures["compile_seconds"], figures["memory_bytes"]) == (90, 8.0, 9)


def test_the_device_is_believed_before_the_program(make_runs, record_run):
    _, (run,) = make_runs()
    record_run(run, [(0.1, 0.1)], device_peak_bytes=123)
    measured = measure_run(run)
    assert (measured.figures["memory_bytes"], measured.memory_source) == (123, "device")


def test_a_gpu_is_what_utilisation_means_where_there_is_one(make_runs, record_run):
    _, (run,) = make_runs()
    record_run(run, [(0.1, 0.1)])
    rows = ["seconds,epochs,cpu_percent,memory_bytes,gpu_percent,gpu_memory_bytes", "2,0,100,5,,", "4,1,100,5,60,7"]
    (run.folder / "samples.csv").write_text("\n".join(rows))
    measured = measure_run(run)
    assert (measured.figures["utilisation"], measured.utilisation_source) == (30.0, "GPU")


def test_the_original_is_read_from_its_log(make_runs, record_run):
    scenario = {"name": "original", "framework": "torch", "python": "python", "weights": "n.pt", "cfg": ""}
    _, (run,) = make_runs(scenarios=[scenario])
    record_run(run, [(0.2, 0.1), (0.3, 0.2)])
    line = "\r {0}/1  0G  0.12  0.11  0.04  540  320: "
    bar = f"{line} 67%|██▋ | 2/3 [00:00<00:00,  9.0it/s]{line}100%|████| 3/3 [00:00<00:00, {{1}}]\n"
    validation = "   Class  Images  Instances  P  R  mAP50  mAP50-95: 100%|████| 2/2 [00:00<00:00,  7.0it/s]\n"
    log = bar.format(0, " 1.50s/it") + validation + bar.format(1, " 2.00it/s") + validation
    (run.folder / "log.txt").write_text(log, encoding="utf-8")
    figures = measure_run(run).figures
    assert (figures["step_seconds"], figures["images_per_second"]) == (1.0, 4.0)  # between 1.5 and 0.5
    assert (figures["map50"], figures["trainable"], figures["memory_bytes"], figures["step_flops"]) == (
        0.3,
        60,
        None,
        None,
    )


def test_a_run_that_is_not_there_or_only_began_has_no_figures(make_runs):
    _, (run,) = make_runs()
    assert measure_run(run).status == "missing"
    run.folder.mkdir(parents=True)
    extent = {"trainable": 1, "parameters": 2, "batch": 4, "epochs": 2}
    (run.folder / "study.json").write_text(
        json.dumps({"status": "failed", "seconds": 3.0, "cpus": 2, "extent": extent})
    )
    measured = measure_run(run)
    assert (measured.status, measured.figures["map50"], measured.figures["wall_seconds"]) == ("failed", None, 3.0)


def test_scenarios_are_means_and_spreads_over_finished_runs(make_runs, record_run):
    study, runs = make_runs(seeds=[0, 1, 2, 3], scenarios=[{"name": "a"}, {"name": "b"}])
    for run in runs:
        if run.scenario.name == "a" and run.seed < 3:
            record_run(run, [(0.1 * (run.seed + 1), 0.1)], status="finished" if run.seed < 2 else "failed")
    first, second = summarise_runs(study, measure_study(study, runs))
    assert (first.seeds, first.mean["map50"]) == ((0, 1), pytest.approx(0.15))
    assert first.spread["map50"] == pytest.approx(0.0707107, rel=1e-5)  # sample standard deviation of .1 and .2
    assert (second.seeds, second.mean["map50"], second.spread["map50"]) == ((), None, None)

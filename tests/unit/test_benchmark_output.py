"""What ``benchmark_model`` prints, in the forms of its builds; and what is refused, in little time.

The outputs are written here after those that people published (the module's docstring says where).
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_meter.builder.backends.tflite import recorded
from nn_meter.builder.backends.tflite.benchmark_gpu import graph_of_kernels
from nn_meter.builder.backends.tflite.benchmark_output import read
from nn_meter.errors import BackendError

RULE = "=" * 30
WARMING = "Running benchmark for at least 1 iterations and at least 0.5 seconds but at most 150."
RUNNING = "Running benchmark for at least 50 iterations and at least 1 seconds but at most 150."
WARM = "count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930"
RUNS = "count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450"
SUMMARY = (
    "Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, "
    "Inference (avg): 33209.4"
)
OLD_SUMMARY = "Average inference timings in us: Warmup: 34825.1, Init: 855, Inference: 33209.4"
WHOLLY = (
    "Explicitly applied GPU delegate, and the model graph will be completely executed by the "
    "delegate."
)
PARTLY = (
    "Explicitly applied GPU delegate, and the model graph will be partially executed by the "
    "delegate w/ 2 delegate kernels."
)
NOT = (
    "Though GPU delegate is explicitly applied, the model graph will not be executed by the "
    "delegate."
)
GUIDE = f"Timings (microseconds): {RUNS}"


def lines(*parts: str) -> str:
    return "\n".join(parts) + "\n"


def table(*rows: tuple[str, str], title: str = "Run Order", start: bool = False) -> str:
    head = "\t   [node type]" + "\t [start]" * start + "\t [first]\t [avg ms]\t [%]\t [cdf%]"
    numbers = "\t 0.100" * start + "\t 0.020\t 0.014\t 3.309%\t 92.948%\t 452.000\t 1\t"
    return lines(
        f"{RULE} {title} {RULE}",
        f"{head}\t [mem KB]\t[times called]\t[Name]",
        *(f"\t{kind:>24}{numbers}{name}" for kind, name in rows),
        "",
    )


LOADING = (
    "Profiling Info for Benchmark Initialization:\n"
    + table(("AllocateTensors", "AllocateTensors/0"))
    + lines("Timings (microseconds): count=1 curr=855", "Memory (bytes): count=0")
)
OPS = (("CONV_2D", "[conv out]:0"), ("Clamp (NC)", "Delegate/Clamp (NC):1"))
PROFILE = (
    "Operator-wise Profiling Info for Regular Benchmark Runs:\n"
    + table(*OPS)
    + table(*reversed(OPS), title="Top by Computation Time")
    + lines("Number of nodes executed: 2")
    + lines("Timings (microseconds): count=50 first=33 curr=33 min=32 max=34 avg=33 std=0")
    + lines("Memory (bytes): count=0", "2 nodes observed")
)


# --- latencies -----------------------------------------------------------------------------------


def percentiles(line: str) -> str:
    return f"{line} p5=32700 median=33100 p95=33900"


def logged(text: str, prefix: str) -> str:
    return "".join(f"{prefix}{line}\n" for line in text.splitlines())


NEW = lines("STARTING!", WARMING, WARM, "", RUNNING, RUNS, "", SUMMARY)
OLD = lines("STARTING!", WARMING, WARM, "", RUNNING, RUNS, "", OLD_SUMMARY)
LITERT = lines(
    "========== BENCHMARK RESULTS ==========",
    "INFO: [benchmark_litert_model.h:92] Model initialization: 23744.73 ms",
    "INFO: [benchmark_litert_model.h:94] Warmup (first):       49.06 ms",
    "INFO: [benchmark_litert_model.h:96] Warmup (avg):         34.83 ms (15 runs)",
    "INFO: [benchmark_litert_model.h:98] Inference (avg):      33.21 ms (50 runs)",
    "INFO: [benchmark_litert_model.h:100] Inference (min):      32.64 ms",
    "INFO: [benchmark_litert_model.h:102] Inference (max):      34.00 ms",
    "INFO: [benchmark_litert_model.h:104] Inference (std):      0.45",
    "INFO: [benchmark_litert_model.h:106] Throughput:           27.46 MB/s",
)
FORMS = {
    "guide": GUIDE + "\n",
    "guide, op profile": table(*OPS, start=True) + lines(GUIDE, "Memory (bytes): count=0"),
    "2019": OLD,
    "2019, op profile before": OLD.replace(
        "Average", table(*OPS, start=True) + GUIDE + "\nAverage"
    ),
    "new": NEW,
    "new, op profile": NEW + LOADING + PROFILE,
    "2024": logged(NEW.replace(WARM, percentiles(WARM)).replace(RUNS, percentiles(RUNS)), "INFO: "),
    "logcat": logged(NEW, "05-31 10:31:13.006 21767 21767 I tflite  : "),
    "scientific": NEW.replace("33209.4", "3.32094e+04"),
    "no summary": lines(WARMING, WARM, RUNNING, RUNS),
    "older words": lines(
        *("Running benchmark for 1 iterations", WARM, "Running benchmark for 50 iterations", RUNS)
    ),
    "count lines only": lines(WARM, RUNS),
    "no warm-up": lines(WARMING, "count=0", RUNNING, RUNS, SUMMARY),
    "DOS": NEW.replace("\n", "\r\n"),
    "last of two runs": NEW.replace("33209.4", "33300.5") + NEW,
    "LiteRT's tool": lines(WARMING, WARM, RUNNING, RUNS) + LITERT,
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_latency_of_the_runs(text):
    found = read(text)
    assert found.avg_us == pytest.approx(33209.4)
    assert (found.std_us, found.min_us, found.max_us) == (450, 32641, 34005)
    assert (found.count, found.first_us) == (50, 32891)


def test_percentiles_give_the_median():
    assert read(FORMS["2024"]).median_us == 33100


def test_a_summary_alone_gives_the_average():
    found = read(lines(SUMMARY))
    assert (found.avg_us, found.count, found.std_us) == (33209.4, None, None)
    assert read(lines(OLD_SUMMARY.replace("Inference: ", "no stats: "))).avg_us == 33209.4


def test_a_summary_that_is_of_other_runs_than_the_line_before_wins():
    found = read(lines(RUNS, SUMMARY.replace("33209.4", "1200.5")))
    assert (found.avg_us, found.count) == (1200.5, None)


def test_litert_prints_milliseconds():
    found = read(LITERT)
    assert found.avg_us == pytest.approx(33210)
    assert (found.std_us, found.min_us, found.max_us) == pytest.approx((450, 32640, 34000))
    assert found.count == 50


@pytest.mark.parametrize("line", ["count=1 curr=1289876", "count=50 curr=1289876(all same)"])
def test_runs_that_all_took_as_long(line):
    found = read(
        lines(WARMING, "count=1 curr=5", RUNNING, line, SUMMARY.replace("33209", "1289876"))
    )
    assert found.avg_us == pytest.approx(1289876)
    only = read(lines(WARMING, "count=1 curr=5", RUNNING, line))
    assert (only.avg_us, only.std_us, only.min_us, only.max_us) == (1289876, 0, 1289876, 1289876)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no latency; it is empty"),
        (
            "/system/bin/sh: benchmark_model: not found\n",
            "holds no latency; its last lines:\n  .*not found",
        ),
        (lines(WARMING, WARM), "ended before the runs did"),
        (lines(WARMING, WARM, RUNNING), "ended before the runs did"),
        (NEW + lines(WARMING, WARM), "ended before the runs did"),
        (LOADING, "holds no latency"),
        ("Memory (bytes): count=0\n", "holds no latency"),
        (lines(WARMING, WARM, RUNNING, "count=0"), "is of no runs"),
        (NEW.replace("avg=33209.4", "avg=nan"), "no number as avg"),
        (NEW.replace("avg=33209.4", "avg=-nan"), "no number as avg"),
        (NEW.replace("avg=33209.4", "avg=inf"), "no number as avg"),
        (NEW.replace("avg=33209.4", "avg=-33209.4"), "an avg that cannot be|avg that cannot be"),
        (NEW.replace("avg=33209.4", "avg=1e308"), "avg that cannot be"),
        (NEW.replace("avg=33209.4", "avg=\u0663\u0663"), "no number as avg"),
        (NEW.replace("avg=33209.4", "avg=40000"), "outside of its own range"),
        (NEW.replace("std=450", "std=-1"), "std that cannot be"),
        (NEW.replace("count=50", "count=-50"), "count that cannot be"),
        (NEW.replace("count=50", "count=5e-1"), "of no runs"),
        (lines(SUMMARY.replace("(avg): 33209.4", "(avg): 0")), "took no time"),
        (lines(SUMMARY.replace("(avg): 33209.4", "(avg): nan")), "no number"),
        (lines(SUMMARY.replace("(avg): 33209.4", "(avg):")), "no number"),
        (lines(WARMING, "count=9 curr=2", RUNNING, "count=50 curr=0(all same)"), "took no time"),
        (LITERT.replace("33.21", "0.00").replace("32.64", "0.00"), "took no time"),
        (LITERT.replace("(50 runs)", "(0 runs)"), "of no runs"),
        (lines(GUIDE.replace("count=50", "count=0")), "of no runs"),
    ],
)
def test_an_output_without_a_latency_is_refused(text, words):
    with pytest.raises(BackendError, match=f"benchmark_model's output .*(?:{words})"):
        read(text)


def test_the_last_lines_are_quoted_and_no_more():
    text = "".join(f"line {number} \x1b[31m{'x' * 500}\n" for number in range(1000))
    with pytest.raises(BackendError, match="line 999") as caught:
        read(text)
    words = str(caught.value)
    assert "line 0 " not in words
    assert len(words.splitlines()) <= 21
    assert len(words) < 5000
    assert "\x1b" not in words


# --- ops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["guide, op profile", "2019, op profile before", "new, op profile"]
)
def test_ops_of_the_runs(form):
    found = read(FORMS[form])
    assert [(node.type, node.name, node.delegated) for node in found.nodes] == [
        ("CONV_2D", "[conv out]:0", False),
        ("Clamp (NC)", "Delegate/Clamp (NC):1", True),
    ]
    assert [node.us for node in found.nodes] == [14, 14]
    graph = recorded.graph_in(FORMS[form])
    assert [node.type for node in graph.nodes] == ["CONV_2D", "Clamp (NC)"]


def test_an_output_without_a_profile_has_no_ops():
    assert read(NEW).nodes == ()


# --- the GPU -------------------------------------------------------------------------------------

REPLACED = (
    "VERBOSE: Replacing 49 out of 49 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 "
    "partitions for subgraph 0."
)
SPLIT = "294 operations will run on the GPU, and the remaining 3 operations will run on the CPU."
ON_GPU = table(("TfLiteGpuDelegateV2", "[Softmax]:110"))


@pytest.mark.parametrize(
    "said",
    [
        WHOLLY,
        f"INFO: {WHOLLY}",
        REPLACED,
        "Applied GPU delegate.",
        ON_GPU,
        "Fully accelerated:     True",
        f"{WHOLLY}\n{WHOLLY.replace('GPU', 'XNNPACK')}",
    ],
)
def test_the_gpu_took_all(said):
    read(f"{said}\n{NEW}").require_delegate("GPU")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (NOT, "took nothing of the model.*will not be executed"),
        (NOT.replace("model graph", "model"), "took nothing of the model"),
        (PARTLY, "took a part of the model.*2 delegate kernels"),
        (REPLACED.replace("49 out", "48 out"), "took a part of the model.*48 out of 49"),
        (SPLIT, "took a part of the model.*remaining 3"),
        (f"{SPLIT}\nApplied GPU delegate.", "took a part"),
        (SPLIT.replace("294 ", "0 "), "took nothing"),
        ("First 0 operations will run on the GPU, and the remaining 81 on the CPU.", "nothing"),
        ("ERROR: Failed to apply GPU delegate.", "took nothing"),
        ("WARN: GPU acceleration is unsupported on this platform.", "took nothing"),
        ("ERROR: Disallowed CPU fallback detected.", "took a part"),
        ("Fully accelerated:     False", "took a part"),
        (table(("TfLiteGpuDelegateV2", "[x]:9"), *OPS), "took a part.*CONV_2D ran outside"),
        (
            f"ERROR: Following operations are not supported by GPU delegate:\nUNPACK: Operation is "
            f"not supported.\n{SPLIT}\n{PARTLY}",
            "took a part of the model.*not supported by GPU.*UNPACK: Operation is not supported",
        ),
        ("Created TensorFlow Lite delegate for GPU.", "does not say that the GPU delegate took"),
        (WHOLLY.replace("GPU", "XNNPACK"), "does not say that the GPU delegate took"),
        (REPLACED.replace("Gpu", "XNNPack"), "does not say that the GPU delegate took"),
        ("", "does not say that the GPU delegate took"),
    ],
)
def test_a_model_that_the_gpu_did_not_take_whole_is_no_latency_of_it(said, words):
    found = read(f"{said}\n{NEW}")
    with pytest.raises(BackendError, match=words):
        found.require_delegate("GPU")


def test_a_second_delegate_that_took_nothing_does_not_matter():
    read(lines(WHOLLY, NOT.replace("GPU", "NNAPI")) + NEW).require_delegate("GPU")


def test_what_went_wrong_is_kept():
    text = "".join(f"WARNING: number {number}\n" for number in range(500)) + lines(NOT) + NEW
    warnings = read(text).warnings
    assert warnings[0] == "WARNING: number 0"
    assert len(warnings) == 20


KERNELS = {
    "linked": lines(
        "Per kernel timing(4 kernels):",
        "  bhwc_to_tensor - 0.010000 ms",
        "  convolution_2d 7 linked : add 8 linked : relu 9 - 0.182040 ms",
        "  convolution_2d 10 - 0.084440ms",
        "  tensor_to_bhwc - 0.010000 ms",
        "--------------------",
        "Accumulated time per operation type:",
        "  convolution_2d - 0.27ms",
    ),
    "arrow": lines(
        "Per kernel timing(4 kernels):",
        "  bhwc_to_tensor; 0.010000 ms; 45.726452 Gb/s",
        "  convolution_2d 7 -> add 8 -> relu 9; 0.182040 ms; 45.7 Gb/s; 661.787234 Gflops",
        "  convolution_2d; 0.084440 ms",
        "  tensor_to_bhwc; 0.010000 ms",
        "--------------------",
    ),
    "nn-Meter": lines(
        *(
            line
            for number, (name, ms) in enumerate(
                [
                    ("to/from tensor", "0.01"),
                    ("convolution_2d 7 linked : add 8 linked : relu 9", "0.18204"),
                    ("convolution_2d 10", "0.08444"),
                    ("to/from tensor", "0.01"),
                ]
            )
            for line in (
                f"kernel_name[{number}]={name}",
                f"local_work_size[{number}]=8,4,1",
                f"kernel[{number}]avg_ms={ms} kernel[{number}]std_ms=0.001 "
                f"kernel[{number}]min_ms=0.01 kernel[{number}]max_ms=0.3",
            )
        )
    ),
}


@pytest.mark.parametrize("text", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("prefix", ["", "INFO: ", "05-31 10:31:13.006 21767 21767 I tflite  : "])
def test_kernels_tell_what_is_fused(text, prefix):
    found = read(logged(text, prefix) + NEW)
    fused = found.kernels[1]
    assert fused.ops == ("convolution_2d", "add", "relu")
    assert fused.us == pytest.approx(182.04)
    assert found.kernels[2].ops == ("convolution_2d",)
    assert len(found.kernels) == 4
    graph = graph_of_kernels(found.kernels)
    assert [node.type for node in graph.compute()] == ["convolution_2d+add+relu", "convolution_2d"]
    found.require_delegate("GPU")


# --- hostile -------------------------------------------------------------------------------------

HOSTILE = r"""
import random, time
from pathlib import Path
from nn_meter.builder.backends.tflite.benchmark_output import read
from nn_meter.errors import BackendError

run_order = "=" * 30 + " Run Order " + "=" * 30 + "\n"
texts = (
    "count=" * 1_700_000,
    "count=1 \n" * 1_200_000,
    " " * 5_000_000 + "=" * 5_000_000,
    ("=" * 4_999 + "\n") * 2000,
    "GPU delegate " * 800_000,
    ("x" * 19_900 + "GPU acceleration is ]avg_ms=\n") * 500,
    ("9" * 19_900 + " operations will run on the GPU\n") * 500,
    run_order + ("\t0.1" * 4_900 + "\n") * 500,
    run_order + "a\t1\t1\t1%\t1%\t1\t1\t[b]:1\n" * 300_000,
    "count=5 curr=9\n" + run_order + "a\t1\t1\t1%\t1%\t1\t1\t[b]:1\n" * 300_000,
    "count=5 curr=9\n" + run_order + ("\t0.1" * 6_000 + "\n") * 400,
    "count=5 curr=9\nPer kernel timing(\n" + " a - 1 ms\n" * 800_000,
    "Per kernel timing(\n" + ("a - " * 4_000 + "\n") * 600,
    "Per kernel timing(\n a - 1 ms\n" * 350_000,
    "\n" * 10_000_000,
    random.Random(1).randbytes(10_000_000).decode(errors="replace"),
)
for text in texts:
    began_s = time.process_time()
    try:
        read(text)
    except BackendError as exc:
        print(time.process_time() - began_s, len(str(exc)))
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line for line in lines if line.startswith("VmHWM")).split()[1])  # since it was started
"""


def test_ten_megabytes_of_garbage_cost_little():
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE], capture_output=True, timeout=300, check=True, text=True
    )
    *costs, kilobytes = done.stdout.splitlines()
    assert len(costs) == 16  # each was refused
    for cost in costs:
        seconds, characters = map(float, cost.split())
        assert seconds < 30  # of the processor, not of the clock
        assert characters < 10_000
    assert int(kilobytes) < 800_000


@given(st.text(max_size=300), st.integers(0, 2000), st.integers(0, 200))
@settings(max_examples=300, deadline=None)
def test_a_damaged_output_is_read_or_refused(noise, place, cut):
    text = WHOLLY + "\n" + NEW + LOADING + PROFILE + KERNELS["linked"] + KERNELS["nn-Meter"]
    damaged = text[:place] + noise + text[place + cut :]
    try:
        found = read(damaged)
    except BackendError:
        return
    assert 0 < found.avg_us < 1e15

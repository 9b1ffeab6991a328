"""Figures read from metrics pages of three engines."""

from __future__ import annotations

from wardrop.fleet.engine_metrics import RankLoad, read_metrics

VLLM = """# HELP vllm:num_requests_running Number of requests
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:cache_config_info{block_size="32",cache_dtype="auto",engine="0",num_gpu_blocks="512"} 1.0
process_start_time_seconds 1.7e+09
"""
SGLANG = """sglang:num_running_reqs{model_name="m",dp_rank="1"} 4
sglang:num_queue_reqs{model_name="m",dp_rank="1"} 5
sglang:token_usage{model_name="m",dp_rank="1"} 0.5
sglang:cache_config_info{page_size="64",num_pages="100"} 1.0
"""
TENSORRT = """trtllm_num_requests_running 1
trtllm_num_requests_waiting 2
trtllm_kv_cache_utilization 0.75
trtllm_kv_cache_tokens_per_block 32
trtllm_kv_cache_max_blocks 1000
"""


def test_each_engine_is_read():
    vllm = read_metrics(VLLM)
    assert (vllm.block_size, vllm.kv_blocks, vllm.started_s) == (32, 512, 1.7e9)
    assert vllm.ranks == {0: RankLoad(3, 2, 0.25), 1: RankLoad(1, 0, None)}
    sglang = read_metrics(SGLANG)
    assert (sglang.block_size, sglang.kv_blocks) == (64, 100)
    assert sglang.ranks == {1: RankLoad(4, 5, 0.5)}
    tensorrt = read_metrics(TENSORRT)
    assert (tensorrt.block_size, tensorrt.kv_blocks) == (32, 1000)
    assert tensorrt.ranks == {0: RankLoad(1, 2, 0.75)}


def test_figures_that_cannot_be_true_are_passed_over():
    page = (
        'vllm:num_requests_running{engine="0"} NaN\n'
        'vllm:num_requests_waiting{engine="x"} -3\n'
        'vllm:kv_cache_usage_perc{engine="0"} +Inf\n'
        'vllm:cache_config_info{block_size="0",num_gpu_blocks="many"} 1\n'
        "vllm:num_requests_running no number\nvllm:\nprocess_start_time_seconds NaN\n"
    )
    found = read_metrics(page)
    assert (found.block_size, found.kv_blocks, found.started_s) == (None, None, None)
    assert found.ranks == {0: RankLoad(0, 0, None)}

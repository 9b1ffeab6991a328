"""The three games of disaggregated inference, ready to compute.

* `routing`  Γ_R: which worker should a request go to, and what does selfish routing lose?
* `caching`  Γ_KV: where should a block live, and what does today's placement lose?
* `resource` Γ_PD: how many prefill and how many decode workers?
* `coupled`  the three together with the planner's delay: does the loop oscillate?

The frame is that of the paper "The Price of Anarchy in Disaggregated Inference" (arXiv 2606.17081).
Docstrings mark what the paper states [A], what a reader of the paper reports [R], and what is our
own [O]. They name the source of what is standard. The games need numpy and scipy only, and touch
neither a router nor a live fleet.
"""

"""The three games of disaggregated inference, ready to compute.

* `routing`  Γ_R: which worker should a request go to, and what does selfish routing lose?
* `caching`  Γ_KV: where should a block live, and what does today's placement lose?
* `resource` Γ_PD: how many prefill and how many decode workers?
* `coupled`  the three together with the planner's delay: does the loop oscillate?

The frame is the paper's ("The Price of Anarchy in Disaggregated Inference", arXiv 2606.17081);
docstrings mark what it states [A], what a reader of it reports [R], what is our own [O], and name
the source of what is standard. Only numpy and scipy are needed; nothing here touches the router or
a live fleet.
"""

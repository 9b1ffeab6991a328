"""Writes a small random Llama with a tokenizer and an adapter. Runs in vLLM's interpreter."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN, LAYERS, RANK = 128, 4, 8
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=400,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=["<|end|>"],
)
tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 10, trainer)
fast = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", chat_template=TEMPLATE
)
fast.save_pretrained(out)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=512,
    hidden_size=HIDDEN,
    intermediate_size=2 * HIDDEN,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=HIDDEN // 4,
    max_position_embeddings=8192,
    dtype="float32",
)
LlamaForCausalLM(config).save_pretrained(out)
adapter = out / "adapter"
adapter.mkdir(exist_ok=True)
settings = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": RANK,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": str(out),
    "bias": "none",
}
(adapter / "adapter_config.json").write_text(json.dumps(settings))
weights = {}
for layer in range(LAYERS):
    name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
    weights[f"{name}.lora_A.weight"] = torch.randn(RANK, HIDDEN) * 0.02
    weights[f"{name}.lora_B.weight"] = torch.randn(HIDDEN, RANK) * 0.02
save_file(weights, adapter / "adapter_model.safetensors")

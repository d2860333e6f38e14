"""Tiny GGUF files: a random Llama and a byte-level tokenizer, written with the package ``gguf``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

LAYERS, WIDTH, HEADS, KEY_HEADS, INNER = 2, 16, 4, 2, 24
SPECIAL = ["<|start|>", "<|end|>"]
LETTERS = list(bytes_to_unicode().values())
VOCABULARY = [*SPECIAL, *LETTERS, "he", "Ġhe"]
#: Names of weights in GGUF and in transformers.
OF_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def random_llama() -> LlamaForCausalLM:
    """A random Llama whose weights are exact in bfloat16."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        intermediate_size=INNER,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    return model


def weights(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """The weights by their names in GGUF, which interleaves the halves of queries and keys."""
    state = model.state_dict()
    found = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    for i in range(LAYERS):
        for ours, theirs in OF_LAYER.items():
            weight = state[f"model.layers.{i}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                heads = HEADS if ours == "attn_q" else KEY_HEADS
                halves = weight.reshape(heads, 2, -1, WIDTH)
                weight = halves.swapaxes(1, 2).reshape(weight.shape)
            found[f"blk.{i}.{ours}.weight"] = weight
    return {name: weight.numpy() for name, weight in found.items()}


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    architecture: str = "llama",
    special: dict[str, int] | None = None,
    tokenizer: str = "gpt2",
) -> Path:
    """Write a GGUF file with these weights. ``special`` names BOS, EOS and padding ids."""
    from gguf import GGUFWriter, TokenType

    writer: Any = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(500.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(VOCABULARY)
    plain = len(VOCABULARY) - len(SPECIAL)
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * plain)
    writer.add_token_merges(["h e", "Ġ he"])
    ids = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id}
    for name, number in ({"bos": 0, "eos": 1} if special is None else special).items():
        ids.get(name, writer.add_pad_token_id)(number)
    for name, weight in tensors.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

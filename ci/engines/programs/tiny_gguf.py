"""Makes a tiny Llama with random weights and a vocabulary of bytes as llama.cpp reads it.

usage: tiny_gguf.py FILE
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np

WIDTH, HEADS, KV_HEADS, LAYERS, HIDDEN, CONTEXT = 128, 8, 4, 4, 256, 4096
SPECIAL = [b"<unk>", b"<s>", b"</s>"]
BYTES = [f"<0x{byte:02X}>".encode() for byte in range(256)]


def describe(model: gguf.GGUFWriter) -> None:
    """Its shape and its vocabulary."""
    model.add_name("tiny")
    model.add_context_length(CONTEXT)
    model.add_embedding_length(WIDTH)
    model.add_block_count(LAYERS)
    model.add_feed_forward_length(HIDDEN)
    model.add_head_count(HEADS)
    model.add_head_count_kv(KV_HEADS)
    model.add_layer_norm_rms_eps(1e-5)
    model.add_rope_dimension_count(WIDTH // HEADS)
    model.add_vocab_size(len(SPECIAL + BYTES))
    model.add_file_type(gguf.LlamaFileType.ALL_F32)
    model.add_tokenizer_model("llama")
    model.add_tokenizer_pre("default")
    model.add_token_list(SPECIAL + BYTES)
    model.add_token_scores([0.0] * len(SPECIAL + BYTES))
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    model.add_token_types(kinds + [gguf.TokenType.BYTE] * len(BYTES))
    for name, number in (("unk", 0), ("bos", 1), ("eos", 2)):
        getattr(model, f"add_{name}_token_id")(number)
    model.add_add_bos_token(True)
    model.add_add_space_prefix(False)


def fill(model: gguf.GGUFWriter) -> None:
    """Weights that make the next token depend on all before it."""
    random = np.random.default_rng(7)

    def matrix(name: str, rows: int, columns: int, spread: float) -> None:
        weights = random.standard_normal((rows, columns)) * spread
        model.add_tensor(name, weights.astype(np.float32))

    def ones(name: str) -> None:
        model.add_tensor(name, np.ones(WIDTH, dtype=np.float32))

    kv_width = KV_HEADS * WIDTH // HEADS
    matrix("token_embd.weight", len(SPECIAL + BYTES), WIDTH, 1.0)
    ones("output_norm.weight")
    matrix("output.weight", len(SPECIAL + BYTES), WIDTH, 0.3)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        ones(block + "attn_norm.weight")
        ones(block + "ffn_norm.weight")
        matrix(block + "attn_q.weight", WIDTH, WIDTH, 0.25)
        matrix(block + "attn_k.weight", kv_width, WIDTH, 0.25)
        matrix(block + "attn_v.weight", kv_width, WIDTH, 0.25)
        matrix(block + "attn_output.weight", WIDTH, WIDTH, 0.25)
        matrix(block + "ffn_gate.weight", HIDDEN, WIDTH, 0.08)
        matrix(block + "ffn_up.weight", HIDDEN, WIDTH, 0.08)
        matrix(block + "ffn_down.weight", WIDTH, HIDDEN, 0.08)


def main() -> None:
    """Writes the file."""
    path = Path(sys.argv[1])
    model = gguf.GGUFWriter(path, "llama")
    describe(model)
    fill(model)
    model.write_header_to_file()
    model.write_kv_data_to_file()
    model.write_tensors_to_file()
    model.close()
    print("RESULT " + json.dumps({"bytes": path.stat().st_size}))


if __name__ == "__main__":
    main()

"""Write a small random Llama, a tokenizer and 16 calibration rows into the folder named; runs where transformers is."""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder = Path(sys.argv[1])
torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=768,
    vocab_size=2048,
    max_position_embeddings=512,
)
model = LlamaForCausalLM(config)
with torch.no_grad():
    for block in model.model.layers:
        # As in real models, inputs of a few channels are large: what AWQ and SmoothQuant are for.
        block.input_layernorm.weight[:4] *= 16
        block.post_attention_layernorm.weight[:4] *= 16
model.to(torch.bfloat16).save_pretrained(folder)
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
)
tokenizer.train_from_iterator(["Question: How many? Answer: 7"], trainer)
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
with open(folder / "train.jsonl", "w") as file:
    for i in range(16):
        file.write(json.dumps({"question": f"{i} books and {i * 7 % 31} more?", "answer": str(i + i * 7 % 31)}) + "\n")

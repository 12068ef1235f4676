"""One LoRA adapter of the embedded base by peft and the Hugging Face Trainer, as a script from the
shell: the peer of `train.py`.
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from toolkit.data import encode_rows, read_rows
from toolkit.model.base import EMBEDDED

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", required=True)
arguments = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
rows = [
    {
        "input_ids": e.ids,
        "attention_mask": [1] * len(e.ids),
        "labels": [t if m else -100 for t, m in zip(e.ids, e.loss_mask, strict=True)],
    }
    for e in encode_rows(read_rows("embedded"), tokenizer, max_length=512)
]
torch.manual_seed(arguments.seed)
config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(AutoModelForCausalLM.from_pretrained(EMBEDDED), config)
asked = TrainingArguments(
    output_dir=arguments.out,
    per_device_train_batch_size=16,
    num_train_epochs=2,
    learning_rate=1e-2,
    warmup_steps=15,
    max_grad_norm=1.0,
    seed=arguments.seed,
    report_to=[],
    save_strategy="no",
    logging_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
)
Trainer(
    model=model,
    args=asked,
    train_dataset=rows,
    data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
).train()
model.save_pretrained(arguments.out)

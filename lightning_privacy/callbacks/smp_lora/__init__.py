"""MP-LoRA and SMP-LoRA: train a LoRA against a proxy membership attacker (arXiv 2402.11989)."""

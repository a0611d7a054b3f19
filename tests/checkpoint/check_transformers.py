#!/usr/bin/env python3
"""Loads exported folders with `transformers` and compares them with reference numbers.

    check_transformers.py FOLDER [--reference FILE] [--dtype float32] [--device cpu]

FOLDER is what `levin convert to-hf` wrote. FILE is a safetensors file with `input_ids` [batch, length] and `logits`
[batch, length, vocabulary], and, if it has them, `loss`, `grad.<key>`, `decode_tokens` and `prefill_logits`: the file
levin_logits.safetensors that `levin convert to-hf --with-logits` leaves in FOLDER (taken when FILE is not given), or a
golden.safetensors. Beyond these it checks that a step-by-step pass with the cache gives the logits of one pass, that
padding on the left changes nothing, and that generate() works with and without the cache, in batches and with beams.
Needs torch, transformers and safetensors. Exit status 0: all holds.
"""

import argparse
import os
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

BOUNDS = {"float64": (1e-6, 1e-6), "float32": (5e-6, 5e-5), "bfloat16": (3e-2, 2e-1)}  # logits, gradients


class Checks:
    def __init__(self):
        self.failed = 0

    def row(self, name, value, bound):
        good = value <= bound
        self.failed += not good
        print(f"  {name:<58} {value:10.3e}  <= {bound:7.1e}  {'ok' if good else 'FAILED'}")

    def distance(self, name, a, b, bound):
        a, b = a.double().cpu(), b.double().cpu()
        self.row(name, ((a - b).norm() / b.norm().clamp(min=1e-300)).item(), bound)


def check_gradients(checks, model, ids, reference, bound):
    model.train()
    for parameter in model.parameters():
        parameter.grad = None
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    if "loss" in reference:
        checks.distance("loss", loss.detach().view(1), reference["loss"].view(1), bound)
    worst, where = 0.0, ""
    for name, parameter in model.named_parameters():
        if f"grad.{name}" in reference:
            want = reference[f"grad.{name}"].double()
            error = ((parameter.grad.double().cpu() - want).norm() / want.norm()).item()
            worst, where = max((worst, where), (error, name))
    if where:
        checks.row(f"worst gradient: {where}", worst, bound)
    model.eval()


@torch.no_grad()
def check_cache(checks, model, ids, bound):
    ids = ids[:1, :80]
    whole = model(ids, use_cache=False).logits
    first = model(ids[:, :37], use_cache=True)
    parts, cache = [first.logits], first.past_key_values
    for t in range(37, ids.shape[1]):
        step = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
        parts.append(step.logits)
        cache = step.past_key_values
    checks.distance("token by token with the cache", torch.cat(parts, dim=1), whole, bound)
    padded = torch.cat([torch.zeros_like(ids[:, :13]), ids], dim=1)
    mask = torch.cat([torch.zeros_like(ids[:, :13]), torch.ones_like(ids)], dim=1)
    checks.distance("padded on the left", model(padded, attention_mask=mask).logits[:, 13:], whole, bound)


@torch.no_grad()
def check_generate(checks, model, ids, reference, exact):
    def generate(prompt, **options):
        # Without an end token every row has its full length, so that rows can be compared.
        return model.generate(prompt, do_sample=False, eos_token_id=None, pad_token_id=0, **options)[:, prompt.shape[1] :]

    if "decode_tokens" in reference and exact:
        want = reference["decode_tokens"][0].long().tolist()
        got = generate(ids[:1], max_new_tokens=len(want))[0].tolist()
        checks.row("generated tokens that differ from the reference", sum(a != b for a, b in zip(got, want)), 0)
    prompt = ids[:1, :24].repeat(2, 1)
    cached = generate(prompt, max_new_tokens=12)
    checks.row("tokens generated", abs(cached.shape[1] - 12), 0)
    checks.row("rows of a batch that differ", (cached[0] != cached[1]).sum().item(), 0)
    if exact:
        plain = generate(prompt, max_new_tokens=12, use_cache=False)
        checks.row("tokens that differ without the cache", (cached != plain).sum().item(), 0)
        beams = generate(prompt[:1], max_new_tokens=8, num_beams=3)
        plain = generate(prompt[:1], max_new_tokens=8, num_beams=3, use_cache=False)
        checks.row("tokens of a beam search that differ without it", (beams != plain).sum().item(), 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--reference")
    parser.add_argument("--dtype", default="float32", choices=list(BOUNDS))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    file = arguments.reference or os.path.join(arguments.folder, "levin_logits.safetensors")
    reference = load_file(file)
    config = AutoConfig.from_pretrained(arguments.folder, trust_remote_code=True)
    model, info = AutoModelForCausalLM.from_pretrained(
        arguments.folder,
        trust_remote_code=True,
        torch_dtype=getattr(torch, arguments.dtype),
        output_loading_info=True,
    )
    model = model.to(arguments.device).eval()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{arguments.folder}: {type(model).__name__}, {parameters:,} parameters, {arguments.dtype}, {arguments.device}")
    checks = Checks()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = [n for n in info.get(kind, ()) if not (config.tie_word_embeddings and n == "lm_head.weight")]
        checks.row(kind.replace("_", " ") + (f": {names[:3]}" if names else ""), len(names), 0)
    ids = reference["input_ids"].long().to(arguments.device)
    logit_bound, gradient_bound = BOUNDS[arguments.dtype]
    with torch.no_grad():
        checks.distance("logits", model(ids, use_cache=False).logits, reference["logits"], logit_bound)
        if "prefill_logits" in reference:
            bound = max(logit_bound, 5e-6)  # the reference was computed in float32
            checks.distance("prefill logits", model(ids[:1]).logits, reference["prefill_logits"], bound)
    check_gradients(checks, model, ids, reference, gradient_bound)
    check_cache(checks, model, ids, max(logit_bound, 1e-6))
    check_generate(checks, model, ids, reference, exact=arguments.dtype != "bfloat16")
    print("all holds" if not checks.failed else f"{checks.failed} checks FAILED")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())

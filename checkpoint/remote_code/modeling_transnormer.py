"""TransNormer language models in plain PyTorch.

A lightning layer is linear attention with a constant decay per head,

    o_t = sum_{s <= t} exp(-slope (t - s)) (q_t . k_s) v_s,

computed in chunks: products inside a chunk, and a state [keys, values] per head that carries everything before it. While
generating, that state is all a layer remembers: time and memory per token do not grow with the length.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_transnormer import TransnormerConfig

CHUNK = 128

ACTIVATIONS = {
    "none": lambda x: x,
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
    "leak": F.leaky_relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "1+elu": lambda x: 1 + F.elu(x),
    "2+elu": lambda x: 2 + F.elu(x),
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "exp": lambda x: torch.exp(x - x.amax(dim=-1, keepdim=True).detach()),
    "sine": torch.sin,
}


def activation(name):
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def accumulator(x):
    """The type sums are kept in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def decay_slopes(config, layer):
    """Slopes of the heads of one layer, as numbers that float32 holds exactly."""
    heads, layers = config.decoder_attention_heads, config.decoder_layers
    if config.decay == "none":
        return [0.0] * heads
    if config.decay == "paper":
        slopes = [8.0 * j / heads * (1.0 - layer / layers) for j in range(heads)]
        return torch.tensor(slopes, dtype=torch.float32, device="cpu").tolist()

    def power_of_two(n):
        return [2.0 ** (-8.0 * (j + 1) / n) for j in range(n)]

    below = 2 ** int(math.floor(math.log2(heads)))
    slopes = power_of_two(below) + power_of_two(2 * below)[0::2][: heads - below]
    slopes = torch.tensor(slopes, dtype=torch.float32, device="cpu")
    if config.decay == "alibi":
        factor = 1.0 - (layer / (layers - 1) if layers > 1 else 0.0) + 1e-5
        slopes = slopes * torch.tensor(factor, dtype=torch.float32, device="cpu")
    elif config.decay != "alibi-no-temperature":
        raise ValueError(f"unknown decay {config.decay!r}")
    return slopes.tolist()


def lightning_attention(q, k, v, slopes, state):
    """q, k [batch, heads, length, keys], v [batch, heads, length, values], state [batch, heads, keys, values] or None.

    Returns o like v and the state after the last token. Arithmetic and state are float32 (float64 for float64).
    """
    dtype, acc = v.dtype, accumulator(v)
    q, k, v = q.to(acc), k.to(acc), v.to(acc)
    slopes = torch.tensor(slopes, dtype=acc, device=v.device).view(-1, 1, 1)
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[1], k.shape[-1], v.shape[-1])
    outputs = []
    for begin in range(0, v.shape[2], CHUNK):
        qc, kc, vc = (x[:, :, begin : begin + CHUNK] for x in (q, k, v))
        n = torch.arange(vc.shape[2], dtype=acc, device=v.device).view(-1, 1)
        distance = n - n.T
        decay = torch.exp(-slopes * distance.clamp(min=0)) * (distance >= 0)
        o = (qc @ kc.transpose(-1, -2) * decay) @ vc
        outputs.append(o + torch.exp(-slopes * (n + 1)) * (qc @ state))
        m = vc.shape[2]
        state = torch.exp(-slopes * m) * state + (torch.exp(-slopes * (m - 1 - n)) * kc).transpose(-1, -2) @ vc
    return torch.cat(outputs, dim=2).to(dtype), state


def rotation(angles, positions, dtype):
    """cos and sin of angle * position. The product is formed in float64: float32 is off by 0.03 rad at a million."""
    turn = angles.double() * positions.double()
    return turn.cos().to(dtype), turn.sin().to(dtype)


class Lrpe(nn.Module):
    """Doubles the width: [x cos(theta t), x sin(theta t)], with learnt theta per channel."""

    def __init__(self, heads, width):
        super().__init__()
        self.theta = nn.Parameter(self.start(heads, width))

    @staticmethod
    def start(heads, width):
        total = heads * width
        return (10000.0 ** (-2.0 / total * torch.arange(total, dtype=torch.float64))).float().view(heads, 1, width)

    def forward(self, x, positions):
        acc = accumulator(x)
        cos, sin = rotation(self.theta, positions.view(-1, 1), acc)
        x = x.to(acc)  # a rounded product would lose what the exact angle gains
        return torch.cat([x * cos, x * sin], dim=-1)


def rope(x, positions, base):
    """Turns the pairs (c, c + width/2) by t * base^(-2c/width)."""
    half = x.shape[-1] // 2
    angles = base ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    cos, sin = rotation(angles, positions.view(-1, 1), accumulator(x))
    a, b = x[..., :half].to(cos.dtype), x[..., half:].to(cos.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class SimpleRMSNorm(nn.Module):
    def __init__(self, width, eps, weight=False):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if weight else None

    def forward(self, x):
        y = x.to(accumulator(x))
        y = y * torch.rsqrt(y.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        if self.weight is not None:
            y = y * self.weight.to(y.dtype)
        return y.to(x.dtype)


def make_norm(config):
    width, eps = config.decoder_embed_dim, config.norm_eps
    if config.norm_type in ("simplermsnorm", "rmsnorm"):
        return SimpleRMSNorm(width, eps or 1e-6, weight=config.norm_type == "rmsnorm")
    return nn.LayerNorm(width, eps=eps or 1e-5)


class LightningMixer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        d, bias = config.decoder_embed_dim, config.bias
        self.layer, self.heads = layer, config.decoder_attention_heads
        self.slopes = decay_slopes(config, layer)
        self.act = activation(config.linear_act_fun)
        act_on_v = config.gate_dim is not None if config.linear_act_on_v is None else config.linear_act_on_v
        self.act_v = self.act if act_on_v else ACTIVATIONS["none"]
        self.qkvu_proj = self.qkv_proj = self.output_gate = self.lrpe = None
        if config.gate_dim is not None:
            self.qkv_proj = nn.Linear(d, 3 * d, bias=bias)
            self.output_gate = nn.Sequential(
                nn.Linear(d, config.gate_dim, bias=bias), nn.Linear(config.gate_dim, d, bias=bias)
            )
        elif config.gate == "none":
            self.qkv_proj = nn.Linear(d, 3 * d, bias=bias)
        else:
            self.qkvu_proj = nn.Linear(d, 4 * d, bias=bias)
        if config.uses_lrpe(layer):
            self.lrpe = Lrpe(self.heads, d // self.heads)
        self.norm = make_norm(config)
        self.out_proj = nn.Linear(d, d, bias=bias)

    def forward(self, x, positions, mask, cache):
        batch, length, d = x.shape
        if self.qkvu_proj is not None:
            q, k, v, gate = self.qkvu_proj(x).chunk(4, dim=-1)
        else:
            q, k, v = self.qkv_proj(x).chunk(3, dim=-1)
            gate = None if self.output_gate is None else torch.sigmoid(self.output_gate(x))
        q, k, v = (y.view(batch, length, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        q, k, v = self.act(q), self.act(k), self.act_v(v)
        if mask is not None:  # a padded token leaves nothing in the state
            v = v * mask[:, None, -length:, None].to(v.dtype)
        if self.lrpe is not None:
            q, k = self.lrpe(q, positions), self.lrpe(k, positions)
        state = None if cache is None else cache.layers.get(self.layer)
        o, state = lightning_attention(q, k, v, self.slopes, state)
        if cache is not None:
            cache.layers[self.layer] = state
        o = self.norm(o.transpose(1, 2).reshape(batch, length, d))
        return self.out_proj(o if gate is None else gate * o)


class SoftmaxMixer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        d = config.decoder_embed_dim
        self.layer, self.heads, self.kv_heads = layer, config.decoder_attention_heads, config.num_key_value_heads
        self.width = d // self.heads
        self.rope_base = config.rope_theta if config.position in ("rope", "lrpe") else None
        self.qkv_proj = nn.Linear(d, (self.heads + 2 * self.kv_heads) * self.width, bias=config.bias)
        self.out_proj = nn.Linear(d, d, bias=config.bias)

    def forward(self, x, positions, mask, cache):
        batch, length, d = x.shape
        sizes = [self.heads * self.width, self.kv_heads * self.width, self.kv_heads * self.width]
        q, k, v = (
            y.view(batch, length, -1, self.width).transpose(1, 2) for y in self.qkv_proj(x).split(sizes, dim=-1)
        )
        if self.rope_base is not None:
            q, k = rope(q, positions, self.rope_base), rope(k, positions, self.rope_base)
        if cache is not None:
            if self.layer in cache.layers:
                k, v = (torch.cat(pair, dim=2) for pair in zip(cache.layers[self.layer], (k, v)))
            cache.layers[self.layer] = (k, v)
        keys = torch.arange(k.shape[2], device=x.device)
        seen = keys[None, :] <= positions.view(-1, 1)
        if mask is not None:
            own = keys[None, :] == positions.view(-1, 1)  # so that a padded query has one key and no NaN
            seen = (seen & mask[:, None, None, : k.shape[2]].bool()) | own
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out_proj(o.transpose(1, 2).reshape(batch, length, d))


class ChannelMixer(nn.Module):
    """Gated feed-forward: (act(x W1) * x W2) W3."""

    def __init__(self, config):
        super().__init__()
        d = config.decoder_embed_dim
        f = d if config.glu_dim == -1 else config.glu_dim
        self.act = activation(config.glu_act_fun)
        self.l1 = nn.Linear(d, f, bias=config.bias)
        self.l2 = nn.Linear(d, f, bias=config.bias)
        self.l3 = nn.Linear(f, d, bias=config.bias)

    def forward(self, x):
        return self.l3(self.act(self.l1(x)) * self.l2(x))


class Layer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.token_norm = make_norm(config)
        self.token_mixer = SoftmaxMixer(config, layer) if config.is_softmax(layer) else LightningMixer(config, layer)
        self.channel_norm = make_norm(config)
        self.channel_mixer = ChannelMixer(config)

    def forward(self, x, positions, mask, cache):
        x = x + self.token_mixer(self.token_norm(x), positions, mask, cache)
        return x + self.channel_mixer(self.channel_norm(x))


class TransnormerCache:
    """What a request remembers: per lightning layer its state, per softmax layer its keys and values."""

    is_compileable = False

    def __init__(self):
        self.layers = {}
        self.seen = 0  # tokens

    def get_seq_length(self, layer_idx=0):
        return self.seen

    def reorder_cache(self, beam_idx):
        for i, held in self.layers.items():
            if isinstance(held, tuple):
                self.layers[i] = tuple(x.index_select(0, beam_idx.to(x.device)) for x in held)
            else:
                self.layers[i] = held.index_select(0, beam_idx.to(held.device))


class TransnormerPreTrainedModel(PreTrainedModel):
    config_class = TransnormerConfig
    base_model_prefix = "model"
    _no_split_modules = ["Layer"]
    _supports_sdpa = True
    _is_stateful = True  # a state cannot be rolled back: no assisted decoding
    _keep_in_fp32_modules_strict = ["lrpe"]  # its angles grow with the position

    def _init_weights(self, module):
        std = self.config.init_std
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, (nn.LayerNorm, SimpleRMSNorm)) and module.weight is not None:
            nn.init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Lrpe) and not getattr(module.theta, "_is_hf_initialized", False):
            with torch.no_grad():
                module.theta.copy_(Lrpe.start(module.theta.shape[0], module.theta.shape[2]))


class TransnormerModel(TransnormerPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        d = config.decoder_embed_dim
        self.scale = 1.0 if config.no_scale_embedding else math.sqrt(d)
        self.embed_tokens = nn.Embedding(config.vocab_size, d, padding_idx=config.pad_token_id)
        self.embed_positions = None
        if config.position == "absolute":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, d)
        self.layers = nn.ModuleList([Layer(config, i) for i in range(config.decoder_layers)])
        self.final_norm = make_norm(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, cache=None):
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x = x * self.scale
        length, past = x.shape[1], 0 if cache is None else cache.seen
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None
        positions = torch.arange(past, past + length, device=x.device)
        if self.embed_positions is not None:
            table = positions
            if attention_mask is not None:  # padding on the left does not count
                table = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -length:]
            x = x + self.embed_positions(table)
        for layer in self.layers:
            x = layer(x, positions, attention_mask, cache)
        if cache is not None:
            cache.seen += length
        return self.final_norm(x)


class TransnormerForCausalLM(TransnormerPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = TransnormerModel(config)
        self.lm_head = nn.Linear(config.decoder_embed_dim, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        inputs_embeds=None,
        labels=None,
        past_key_values=None,
        use_cache=None,
        return_dict=None,
        logits_to_keep=0,
        num_items_in_batch=None,
        **kwargs,
    ):
        use_cache = (self.config.use_cache and not self.training) if use_cache is None else use_cache
        cache = past_key_values if isinstance(past_key_values, TransnormerCache) else None
        if use_cache and cache is None:
            cache = TransnormerCache()
        hidden = self.model(input_ids, inputs_embeds, attention_mask, cache)
        if labels is None and logits_to_keep:
            hidden = hidden[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else hidden[:, logits_to_keep]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:  # position t predicts label t + 1
            reduction = "mean" if num_items_in_batch is None else "sum"
            scores = logits[:, :-1].reshape(-1, logits.shape[-1])
            loss = F.cross_entropy(
                scores.to(accumulator(scores)), labels[:, 1:].reshape(-1).to(scores.device), reduction=reduction
            )
            if num_items_in_batch is not None:
                loss = loss / num_items_in_batch
        if return_dict is False:
            return tuple(x for x in (loss, logits, cache) if x is not None)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, use_cache=True, **kwargs
    ):
        cache = past_key_values if isinstance(past_key_values, TransnormerCache) else None
        inputs = {"attention_mask": attention_mask, "past_key_values": cache, "use_cache": use_cache}
        if inputs_embeds is not None and cache is None:
            inputs["inputs_embeds"] = inputs_embeds
        else:
            inputs["input_ids"] = input_ids if cache is None else input_ids[:, cache.seen :]
        if "logits_to_keep" in kwargs:
            inputs["logits_to_keep"] = kwargs["logits_to_keep"]
        return inputs

    def _reorder_cache(self, past_key_values, beam_idx):
        past_key_values.reorder_cache(beam_idx)
        return past_key_values

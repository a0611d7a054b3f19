"""Configuration of the TransNormer family: TransNormerLLM (TNL), TNL3, and models that mix in softmax layers."""

from transformers import PretrainedConfig


class TransnormerConfig(PretrainedConfig):
    """Keys of the published checkpoints first, then those only levin writes.

    Args:
        decoder_embed_dim, decoder_layers, decoder_attention_heads: width d, layers and heads H; a head has d/H channels.
        glu_dim: width of the gated feed-forward; -1 means d.
        gate_dim: rank of the sigmoid output gate; a number makes this a TNL3 (the activation is then on v too).
        linear_act_fun: activation of q and k in a lightning layer.
        linear_use_lrpe_list: per layer 1 or 0, does it rotate q and k by learnt angles; empty: none does.
        norm_type: "simplermsnorm", "rmsnorm", anything else is LayerNorm.
        mixer: per layer "lightning" or "softmax"; None: all lightning.
        linear_act_on_v: activation on v as well; None: where gate_dim is given.
        gate: None, or "none" for no output gate.
        decay: "alibi", "alibi-no-temperature", "paper" or "none".
        position: "lrpe", "rope" (softmax layers turn q and k), "absolute" (a learnt table) or "none".
        glu_act_fun: activation of the first factor of the feed-forward.
        norm_eps: None means 1e-6, for LayerNorm 1e-5.
    """

    model_type = "transnormer"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "decoder_embed_dim",
        "num_hidden_layers": "decoder_layers",
        "num_attention_heads": "decoder_attention_heads",
    }

    def __init__(
        self,
        vocab_size=64000,
        decoder_embed_dim=1024,
        decoder_layers=24,
        decoder_attention_heads=8,
        hidden_dim=None,
        glu_dim=2816,
        gate_dim=None,
        bias=False,
        linear_act_fun="silu",
        linear_use_lrpe_list=(),
        no_scale_embedding=False,
        norm_type="simplermsnorm",
        init_std=0.02,
        use_cache=True,
        add_bos_token=False,
        mixer=None,
        num_key_value_heads=None,
        linear_act_on_v=None,
        gate=None,
        decay="alibi",
        position="lrpe",
        rope_theta=10000.0,
        max_position_embeddings=8192,
        glu_act_fun="none",
        norm_eps=None,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.decoder_embed_dim = decoder_embed_dim
        self.decoder_layers = decoder_layers
        self.decoder_attention_heads = decoder_attention_heads
        self.hidden_dim = decoder_embed_dim if hidden_dim is None else hidden_dim
        self.glu_dim = glu_dim
        self.gate_dim = gate_dim
        self.bias = bias
        self.linear_act_fun = linear_act_fun
        self.linear_use_lrpe_list = list(linear_use_lrpe_list)
        self.no_scale_embedding = no_scale_embedding
        self.norm_type = norm_type
        self.init_std = init_std
        self.use_cache = use_cache
        self.add_bos_token = add_bos_token
        self.mixer = mixer
        self.num_key_value_heads = num_key_value_heads or decoder_attention_heads
        self.linear_act_on_v = linear_act_on_v
        self.gate = gate
        self.decay = decay
        self.position = position
        self.rope_theta = rope_theta
        self.max_position_embeddings = max_position_embeddings
        self.glu_act_fun = glu_act_fun
        self.norm_eps = norm_eps
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )

    def is_softmax(self, layer):
        return self.mixer is not None and self.mixer[layer] == "softmax"

    def uses_lrpe(self, layer):
        return bool(self.linear_use_lrpe_list) and bool(self.linear_use_lrpe_list[layer])

"""The multi-token-prediction head of Qwen3.5 and Qwen3-Next checkpoints (`mtp.*`), which transformers does not load.

Row t joins the embedding of token t+1 with the normed hidden state of token t, passes one full-attention layer at
position t and the head's own norm, and predicts token t+2 through the trunk's lm_head.
"""
import sys

import torch


class MultiTokenHead(torch.nn.Module):
    """Built from the classes of the text model's own package; parameters are named as `mtp.*` without the prefix."""

    def __init__(self, model):
        super().__init__()
        config, module = model.config, sys.modules[type(model).__module__]
        layer_class = type(model.model.layers[0])
        norm = getattr(module, layer_class.__name__.replace("DecoderLayer", "RMSNorm"))
        self.pre_fc_norm_embedding = norm(config.hidden_size, config.rms_norm_eps)
        self.pre_fc_norm_hidden = norm(config.hidden_size, config.rms_norm_eps)
        self.fc = torch.nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layers = torch.nn.ModuleList([layer_class(config, config.layer_types.index("full_attention"))])
        self.norm = norm(config.hidden_size, config.rms_norm_eps)
        self.multimodal_positions = hasattr(model.model.rotary_emb, "mrope_section")

    def forward(self, model, hidden, ids):
        """Logits [n-1, vocab] of the head, from the normed hidden states [1, n, hidden] of the trunk."""
        embeddings, n = model.model.embed_tokens(ids[:, 1:]), ids.shape[1] - 1
        x = self.fc(torch.cat([self.pre_fc_norm_embedding(embeddings), self.pre_fc_norm_hidden(hidden[:, :-1])], dim=-1))
        positions = torch.arange(n)[None, None].expand(3, 1, n) if self.multimodal_positions else torch.arange(n)[None]
        mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
        x = self.layers[0](x, position_embeddings=model.model.rotary_emb(x, positions), attention_mask=mask)
        return model.lm_head(self.norm(x))[0]

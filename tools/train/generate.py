"""Generation with the training code's own model: greedy or sampled, all prompts together."""
import torch

EOS = 1


@torch.no_grad()
def generate(model, prompts, limit, temperature=0.0, top_p=1.0):
    """Continues prompts (lists of ids) up to EOS or limit tokens; the new ids, EOS left out.

    Shorter prompts are filled up on the left and the filling is masked: only distances matter to the rotary positions."""
    width = max(map(len, prompts))
    ids = torch.tensor([[EOS] * (width - len(p)) + p for p in prompts])
    filling = torch.tensor([[width - len(p)] for p in prompts])
    dtype = model.head.dtype
    hidden_keys = torch.arange(width + limit) < filling
    caches = [{} for _ in model.layers]
    live, said = torch.ones(len(prompts), dtype=torch.bool), []
    while len(said) < limit and live.any():
        keys = width + len(said)
        mask = hidden_keys[:, None, :keys]
        if not said:
            mask = mask | torch.ones(width, width, dtype=torch.bool).triu(1)
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, -1e30)[:, None]
        logits = model.logits(model.hidden(ids, mask, caches)[:, -1]).float()
        if temperature:
            p, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
            p = p.masked_fill(p.cumsum(-1) - p > top_p, 0.0)
            ids = order.gather(1, p.multinomial(1))
        else:
            ids = logits.argmax(-1, keepdim=True)
        said.append(ids[:, 0])
        live &= ids[:, 0] != EOS
    out = torch.stack(said, 1).tolist()
    return [row[:row.index(EOS)] if EOS in row else row for row in out]

"""Generation with the training code's own model: greedy or sampled, prompts of one length together."""
import torch

EOS = 1


@torch.no_grad()
def generate(model, prompts, limit, temperature=0.0, top_p=1.0):
    """Continues prompts (lists of ids, any lengths) up to EOS or limit tokens; the new ids, EOS left out."""
    out = [None] * len(prompts)
    lengths = {}
    for i, p in enumerate(prompts):
        lengths.setdefault(len(p), []).append(i)
    for members in lengths.values():
        caches = [{} for _ in model.layers]
        ids = torch.tensor([prompts[i] for i in members])
        said, live = [], torch.ones(len(members), dtype=torch.bool)
        while len(said) < limit and live.any():
            logits = model.logits(model.hidden(ids, caches=caches)[:, -1]).float()
            if temperature:
                p, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
                p = p.masked_fill(p.cumsum(-1) - p > top_p, 0.0)
                ids = order.gather(1, p.multinomial(1))
            else:
                ids = logits.argmax(-1, keepdim=True)
            said.append(ids[:, 0])
            live &= ids[:, 0] != EOS
        for row, i in enumerate(members):
            tokens = [int(s[row]) for s in said]
            out[i] = tokens[:tokens.index(EOS)] if EOS in tokens else tokens
    return out

"""The text encoder: captions to embeddings, trained against what the pictures look like."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from raybrain.pretraining.optimise import Progress, optimise
from raybrain.pretraining.settings import Text

START, END = "<|startoftext|>", "<|endoftext|>"
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How CLIP splits text before its byte pairs (Radford et al. 2021)."""
MAX_LOGIT_SCALE = 4.6
"""Logarithm of the largest inverse temperature, 100 (Radford et al. 2021)."""


def new_tokenizer(captions: Sequence[str], *, settings: Text) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose byte pairs were merged on `captions`.

    Every text can be spelled, because all 256 bytes are pieces.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    letters = sorted(alphabet)
    base = [*letters, *(letter + "</w>" for letter in letters)]
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    merges = _merges(trained)[: settings.vocabulary - len(base) - 2]
    pieces = [*base, *("".join(pair) for pair in merges), START, END]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))},
        merges=merges,
        model_max_length=settings.tokens,
    )


def new_text_encoder(tokenizer: CLIPTokenizer, *, settings: Text) -> CLIPTextModel:
    """Return an untrained text encoder for a tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            intermediate_size=4 * settings.width,
            projection_dim=settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=settings.tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attention_dropout=0.1,
        )
    )


def tokenize(captions: Sequence[str], *, tokenizer: CLIPTokenizer) -> Tensor:
    """Return token ids (caption, tokens), padded or cut to the tokenizer's length."""
    return tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


class ContrastiveLoss(nn.Module):
    """Captions find their picture among the batch and pictures their caption.

    The symmetric cross-entropy of CLIP (Radford et al. 2021, fig. 3). Pictures are seen through
    frozen features and a trained linear projection that is thrown away afterwards.
    """

    def __init__(self, encoder: CLIPTextModel, *, features: int) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.look = nn.Sequential(
            nn.LayerNorm(features), nn.Dropout(0.2), nn.Linear(features, width)
        )
        self.say = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, ids: Tensor, features: Tensor, picture: Tensor) -> dict[str, Tensor]:
        """Return the loss for captions (n, tokens) of pictures with features (n, f).

        Samples with the same number in `picture` (n,) count as one another's match.
        """
        said = functional.normalize(self.say(self.encoder(ids).pooler_output), dim=-1)
        seen = functional.normalize(self.look(features), dim=-1)
        logits = said @ seen.T * self.log_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        same = (picture[:, None] == picture[None, :]).float()
        wanted = same / same.sum(1, keepdim=True)
        loss = (
            functional.cross_entropy(logits, wanted) + functional.cross_entropy(logits.T, wanted)
        ) / 2
        hits = same.gather(1, logits.argmax(1)[:, None]).mean()
        return {"loss": loss, "top1": hits}


def fit_text_encoder(
    loss: ContrastiveLoss,
    *,
    ids: Sequence[Tensor],
    features: Tensor,
    weight: Tensor,
    settings: Text,
    seed: int,
    **how: Any,
) -> Iterator[Progress]:
    """Train the text encoder and yield progress; `how` as for `optimise`.

    Parameters
    ----------
    loss
        Holds the encoder.
    ids
        For each picture, the token ids (caption, tokens) of its captions, one drawn at a time.
    features
        (copy, picture, f) of varied copies, one drawn at a time.
    weight
        (picture,) how often each is drawn, relative to the others.
    """
    copies = len(features)

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.multinomial(weight, count, replacement=True)
        captions = torch.stack(
            [ids[i][int(torch.randint(len(ids[i]), (1,)))] for i in chosen.tolist()]
        )
        return captions, features[torch.randint(copies, (count,)), chosen], chosen

    return optimise(loss, draw=draw, settings=settings.optimisation, seed=seed, **how)


@torch.no_grad()
def embed_captions(
    captions: Sequence[str], *, tokenizer: CLIPTokenizer, encoder: CLIPTextModel
) -> Tensor:
    """Return last hidden states (caption, tokens, width)."""
    encoder.eval()
    ids = tokenize(captions, tokenizer=tokenizer)
    return torch.cat([encoder(chunk).last_hidden_state for chunk in ids.split(256)])


def _regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)


def _merges(trained: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]

"""Names that checkpoints and adapters give to a base's linear maps, norms and biases.

Knows the naming of BERT, RoBERTa, XLM-R and DistilBERT as `transformers` has it; does not know
what is done with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.adapter_format.spec import Place, Site
from services.common.base_config import Architecture, BaseConfig

_BERT_MAPS = {
    "attention.self.query": (Site.ATTENTION_INPUT, 0),
    "attention.self.key": (Site.ATTENTION_INPUT, 1),
    "attention.self.value": (Site.ATTENTION_INPUT, 2),
    "attention.output.dense": (Site.ATTENTION_OUTPUT, 0),
    "intermediate.dense": (Site.FFN_INPUT, 0),
    "output.dense": (Site.FFN_OUTPUT, 0),
}
_DISTILBERT_MAPS = {
    "attention.q_lin": (Site.ATTENTION_INPUT, 0),
    "attention.k_lin": (Site.ATTENTION_INPUT, 1),
    "attention.v_lin": (Site.ATTENTION_INPUT, 2),
    "attention.out_lin": (Site.ATTENTION_OUTPUT, 0),
    "ffn.lin1": (Site.FFN_INPUT, 0),
    "ffn.lin2": (Site.FFN_OUTPUT, 0),
}
_BERT_NORMS = {
    "attention.output.LayerNorm": Site.ATTENTION_OUTPUT,
    "output.LayerNorm": Site.FFN_OUTPUT,
}
_DISTILBERT_NORMS = {
    "sa_layer_norm": Site.ATTENTION_OUTPUT,
    "output_layer_norm": Site.FFN_OUTPUT,
}
_BERT_BOTTLENECKS = {
    Site.ATTENTION_OUTPUT: "attention.output.adapters",
    Site.FFN_OUTPUT: "output.adapters",
}
_DISTILBERT_BOTTLENECKS = {
    Site.ATTENTION_OUTPUT: "attention_adapters.adapters",
    Site.FFN_OUTPUT: "output_adapters.adapters",
}
_MODEL_PREFIXES = {
    Architecture.BERT: "bert.",
    Architecture.ROBERTA: "roberta.",
    Architecture.XLM_ROBERTA: "roberta.",
    Architecture.DISTILBERT: "distilbert.",
}

POOLER = "pooler.dense"
EMBEDDING_NORM = "embeddings.LayerNorm"


@dataclass(frozen=True, slots=True)
class ModuleNames:
    """A base's modules by name, without the prefix a task model puts before them.

    Attributes:
        maps: Linear maps inside the layers.
        norms: LayerNorms that close half layers, as their layer and site.
        has_pooler: Whether the architecture has a pooler.
    """

    prefix: str
    maps: dict[str, Place]
    norms: dict[str, Place]
    has_pooler: bool
    bottlenecks: dict[tuple[int, Site], str]

    def prefix_of(self, names: Sequence[str]) -> str:
        """The prefix (`bert.`, or none for a bare base) that the tensors' names carry."""
        return self.prefix if any(name.startswith(self.prefix) for name in names) else ""


def module_names(base: BaseConfig) -> ModuleNames:
    """The modules of a base."""
    is_distilbert = base.architecture is Architecture.DISTILBERT
    stem = "transformer.layer" if is_distilbert else "encoder.layer"
    maps, norms, bottlenecks = (
        (_DISTILBERT_MAPS, _DISTILBERT_NORMS, _DISTILBERT_BOTTLENECKS)
        if is_distilbert
        else (_BERT_MAPS, _BERT_NORMS, _BERT_BOTTLENECKS)
    )
    layers = range(base.num_layers)
    return ModuleNames(
        prefix=_MODEL_PREFIXES[base.architecture],
        maps={
            f"{stem}.{layer}.{name}": Place(layer, site, part)
            for layer in layers
            for name, (site, part) in maps.items()
        },
        norms={
            f"{stem}.{layer}.{name}": Place(layer, site)
            for layer in layers
            for name, site in norms.items()
        },
        has_pooler=not is_distilbert,
        bottlenecks={
            (layer, site): f"{stem}.{layer}.{name}"
            for layer in layers
            for site, name in bottlenecks.items()
        },
    )


def sizes(base: BaseConfig, place: Place | None) -> tuple[int, int]:
    """Input and output width of a linear map; None is the pooler."""
    if place is not None and place.site is Site.FFN_INPUT:
        return base.hidden_size, base.intermediate_size
    if place is not None and place.site is Site.FFN_OUTPUT:
        return base.intermediate_size, base.hidden_size
    return base.hidden_size, base.hidden_size
